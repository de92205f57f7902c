"""Settings of Django's own test suite: its databases are files, and not in memory as by default."""

import os

_FOLDER = os.environ["APPLICATION_WORK"]


def _database(name):
    path = os.path.join(_FOLDER, name)
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": path + ".db", "TEST": {"NAME": path + "-test.db"}}


DATABASES = {"default": _database("default"), "other": _database("other")}
SECRET_KEY = "of the test suite"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
