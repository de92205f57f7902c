"""A FoundationDB cluster for a script: says where its cluster file is, and ends with its standard input.

fdb_cluster.py DIR
"""

import sys

from harness import Cluster


def main():
    cluster = Cluster(sys.argv[1], "memory")
    try:
        print(cluster.file, flush=True)
        sys.stdin.read()
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
