//! The mixes A to F of the Yahoo! Cloud Serving Benchmark (Cooper et al., SoCC 2010), each operation a transaction of its own.
//!
//! Records have ten fields of 100 bytes. Keys follow the paper's Zipfian distribution with the constant 0.99, in mix D counted back
//! from the newest; they are not scattered over the key space, since neighbours share a page here and a scattered hot set would measure
//! the sizes of caches.

use rusqlite::Connection;

use super::*;
use crate::bench::rounds::Operation;
use crate::bench::subjects::RowIds;

/// Operations that are timed together: a single one is either a read or an update, and a median would show one of them.
const BATCH: u64 = 100;
/// What the shares of a mix are parts of.
const WHOLE: u64 = 100;
const FIELDS: usize = 10;
const ZIPFIAN: f64 = 0.99;
/// Records of the longest scan.
const LONGEST_SCAN: u64 = 100;

/// A mix, and how many of 100 operations are not plain reads.
#[derive(Clone, Copy)]
pub struct Mix {
    /// Its letter first.
    pub name: &'static str,
    /// Of 100 operations.
    pub others: u64,
    other: Other,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    Update,
    /// Inserts; reads prefer what is new.
    InsertAndReadLatest,
    /// Inserts beside scans instead of reads.
    InsertAndScan,
    ReadModifyWrite,
}

/// Half of it writes.
pub const MIX_A: Mix = Mix {
    name: "A: 50 reads, 50 updates",
    others: 50,
    other: Other::Update,
};
/// The one with scans.
pub const MIX_E: Mix = Mix {
    name: "E: 95 scans of up to 100, 5 inserts",
    others: 5,
    other: Other::InsertAndScan,
};
const MIXES: [Mix; 6] = [
    MIX_A,
    Mix {
        name: "B: 95 reads, 5 updates",
        others: 5,
        other: Other::Update,
    },
    Mix {
        name: "C: reads only",
        others: 0,
        other: Other::Update,
    },
    Mix {
        name: "D: 95 reads of the latest, 5 inserts",
        others: 5,
        other: Other::InsertAndReadLatest,
    },
    MIX_E,
    Mix {
        name: "F: 50 reads, 50 read-modify-writes",
        others: 50,
        other: Other::ReadModifyWrite,
    },
];

impl Scene<'_> {
    /// A row for each mix.
    pub(super) fn ycsb(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for mix in MIXES {
            let letter = &mix.name[..1];
            let remote = self.remote.open(&format!("ycsb-{letter}"))?;
            let mut ours = Ycsb::new(remote, mix, self.sizes.records, BATCH)?;
            let echo = self.echo_of(&mut ours, 4)?;
            let mut contestants = vec![Contestant::new(self.ours(), ours), echo];
            for local in self.journal_modes() {
                let connection =
                    local.open(self.directory, &self.local_name(&format!("ycsb-{letter}")))?;
                contestants.push(Contestant::new(
                    local.name(),
                    Ycsb::new(connection, mix, self.sizes.records, BATCH)?,
                ));
            }
            rows.push(self.row(
                format!(
                    "YCSB {}, {} records, {} store",
                    mix.name, self.sizes.records, self.remote.store
                ),
                Unit::Rate { operations: BATCH },
                self.sizes.batches(),
                contestants,
                &[],
            )?);
        }
        Ok(rows)
    }
}

/// The mix on one table, a batch at a time.
pub struct Ycsb {
    connection: Connection,
    mix: Mix,
    batch: u64,
    keys: Zipfian,
    dice: RowIds,
    field: u64,
}

impl Ycsb {
    /// Makes the table; `batch` operations have to be whole numbers of each kind.
    pub fn new(connection: Connection, mix: Mix, records: u64, batch: u64) -> anyhow::Result<Self> {
        let fields: Vec<String> = (0..FIELDS).map(|field| format!("f{field} TEXT")).collect();
        let values = ["hex(randomblob(50))"; FIELDS].join(",");
        connection.execute_batch(&format!(
            "CREATE TABLE usertable(id INTEGER PRIMARY KEY, {});
             INSERT INTO usertable
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {records})
             SELECT i, {values} FROM n",
            fields.join(",")
        ))?;
        Ok(Self {
            connection,
            mix,
            batch,
            keys: Zipfian::new(records),
            dice: RowIds::new(u64::MAX),
            field: 0,
        })
    }

    fn key(&mut self) -> i64 {
        let unit = (self.dice.next() as u64 >> 11) as f64 / (1u64 << 53) as f64;
        let rank = self.keys.rank(unit);
        if self.mix.other == Other::InsertAndReadLatest {
            (self.keys.items - rank) as i64
        } else {
            rank as i64 + 1
        }
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let key = self.key();
        let mut select = self
            .connection
            .prepare_cached("SELECT * FROM usertable WHERE id = ?1")?;
        let length = select.query_row([key], |row| {
            (1..=FIELDS).try_fold(
                0,
                |sum, field| Ok(sum + row.get_ref(field)?.as_str()?.len()),
            )
        })?;
        anyhow::ensure!(
            length == FIELDS * 100,
            "record {key} has {length} characters"
        );
        Ok(())
    }

    fn scan(&mut self) -> anyhow::Result<()> {
        let (key, most) = (self.key(), self.dice.next() as u64 % LONGEST_SCAN + 1);
        let mut select = self
            .connection
            .prepare_cached("SELECT * FROM usertable WHERE id >= ?1 ORDER BY id LIMIT ?2")?;
        let mut rows = select.query([key, most as i64])?;
        let mut found = 0;
        while let Some(row) = rows.next()? {
            for field in 1..=FIELDS {
                found += row.get_ref(field)?.as_str()?.len();
            }
        }
        anyhow::ensure!(found > 0, "a scan from {key} found nothing");
        Ok(())
    }

    fn update(&mut self) -> anyhow::Result<()> {
        let key = self.key();
        self.field = (self.field + 1) % FIELDS as u64;
        let mut update = self.connection.prepare_cached(&format!(
            "UPDATE usertable SET f{} = hex(randomblob(50)) WHERE id = ?1",
            self.field
        ))?;
        anyhow::ensure!(update.execute([key])? == 1, "record {key} is missing");
        Ok(())
    }

    fn insert(&mut self) -> anyhow::Result<()> {
        let values = ["hex(randomblob(50))"; FIELDS].join(",");
        let mut insert = self
            .connection
            .prepare_cached(&format!("INSERT INTO usertable VALUES(?1, {values})"))?;
        insert.execute([self.keys.items as i64 + 1])?;
        self.keys.grow();
        Ok(())
    }
}

impl Operation for Ycsb {
    fn run(&mut self) -> anyhow::Result<()> {
        for number in 0..self.batch {
            // Evenly among the others, so that each batch is the same mix.
            let before = number * self.mix.others / WHOLE;
            let is_other = (number + 1) * self.mix.others / WHOLE > before;
            match (is_other, self.mix.other) {
                (false, Other::InsertAndScan) => self.scan()?,
                (false, _) => self.read()?,
                (true, Other::Update) => self.update()?,
                (true, Other::ReadModifyWrite) => {
                    self.connection.execute_batch("BEGIN IMMEDIATE")?;
                    self.read()?;
                    self.update()?;
                    self.connection.execute_batch("COMMIT")?;
                }
                (true, Other::InsertAndReadLatest | Other::InsertAndScan) => self.insert()?,
            }
        }
        Ok(())
    }
}

/// Ranks after Zipf's law, drawn in constant time (Gray et al., "Quickly Generating Billion-Record Synthetic Databases",
/// SIGMOD 1994), as YCSB does.
struct Zipfian {
    items: u64,
    zeta: f64,
}

impl Zipfian {
    fn new(items: u64) -> Self {
        let zeta = (1..=items).map(|item| (item as f64).powf(-ZIPFIAN)).sum();
        Self { items, zeta }
    }

    fn grow(&mut self) {
        self.items += 1;
        self.zeta += (self.items as f64).powf(-ZIPFIAN);
    }

    /// From 0, which is the most frequent, for a number from 0 to 1.
    fn rank(&self, unit: f64) -> u64 {
        let zeta_of_two = 1.0 + 0.5f64.powf(ZIPFIAN);
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < zeta_of_two {
            return 1;
        }
        let items = self.items as f64;
        let eta = (1.0 - (2.0 / items).powf(1.0 - ZIPFIAN)) / (1.0 - zeta_of_two / self.zeta);
        let rank = items * (eta * unit - eta + 1.0).powf(1.0 / (1.0 - ZIPFIAN));
        (rank as u64).min(self.items - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_zipfs_law() {
        let keys = Zipfian::new(1000);
        let mut counts = vec![0u32; 1000];
        for number in 0..100_000 {
            counts[keys.rank(f64::from(number) / 100_000.0) as usize] += 1;
        }
        let expected = |rank: u32| 100_000.0 * f64::from(rank + 1).powf(-ZIPFIAN) / keys.zeta;
        for rank in [0, 1, 10, 100] {
            let count = f64::from(counts[rank as usize]);
            assert!(
                (count / expected(rank) - 1.0).abs() < 0.2,
                "{rank}: {count}"
            );
        }
        assert_eq!(keys.rank(0.0), 0);
        assert!(keys.rank(1.0) < 1000);
    }
}
