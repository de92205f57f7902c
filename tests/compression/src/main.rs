//! Compresses the pages of a database one by one, and as deltas of the page that an older copy of it has in the same place, as commits and
//! answers do it (`proto/src/model/encoding.rs`), with each codec; prints what is left and what it took, on one thread.

use std::time::{Duration, Instant};

/// `SQLite`'s default.
const PAGE: usize = 4096;
/// Each is done so often, and the fastest one counts: the machine does other things too.
const ROUNDS: usize = 7;

type Encode = Box<dyn FnMut(&[u8], &[u8]) -> Vec<u8>>;
type Decode = Box<dyn FnMut(&[u8], &[u8]) -> Vec<u8>>;

/// With an empty dictionary for a page by itself.
fn codecs() -> Vec<(String, Encode, Decode)> {
    let mut codecs: Vec<(String, Encode, Decode)> = vec![(
        "LZ4".to_owned(),
        Box::new(|page, base| lz4_flex::block::compress_with_dict(page, base)),
        Box::new(|block, base| {
            lz4_flex::block::decompress_with_dict(block, PAGE, base)
                .expect("it was compressed here")
        }),
    )];
    for level in [-5, 1, 3] {
        // Contexts are made once and used again: making one takes longer than a page.
        let mut by_itself = zstd::bulk::Compressor::new(level).expect("a level of zstd");
        let mut back = zstd::bulk::Decompressor::new().expect("memory");
        codecs.push((
            format!("zstd {level}"),
            Box::new(move |page, base| match base {
                [] => by_itself.compress(page).expect("room"),
                base => {
                    let mut with_base = zstd::bulk::Compressor::with_dictionary(level, base)
                        .expect("a level of zstd");
                    with_base.compress(page).expect("room")
                }
            }),
            Box::new(move |block, base| match base {
                [] => back
                    .decompress(block, PAGE)
                    .expect("it was compressed here"),
                base => {
                    let mut with_base =
                        zstd::bulk::Decompressor::with_dictionary(base).expect("memory");
                    with_base
                        .decompress(block, PAGE)
                        .expect("it was compressed here")
                }
            }),
        ));
    }
    codecs
}

/// Microseconds a page.
fn a_page(time: Duration, pages: usize) -> f64 {
    time.as_secs_f64() * 1e6 / pages as f64
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(label), Some(path)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: pagewire-compression LABEL DATABASE [OLDER COPY OF IT]");
        std::process::exit(2);
    };
    let read =
        |path: &String| std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let database = read(&path);
    let older = arguments.next().map(|path| read(&path));
    let pairs: Vec<(&[u8], &[u8])> = match &older {
        None => database
            .chunks_exact(PAGE)
            .map(|page| (page, &[][..]))
            .collect(),
        Some(older) => {
            let pairs = database.chunks_exact(PAGE).zip(older.chunks_exact(PAGE));
            pairs.filter(|(page, base)| page != base).collect()
        }
    };
    assert!(!pairs.is_empty(), "{path}: nothing to compress");
    for (name, mut encode, mut decode) in codecs() {
        let (mut fastest, mut fastest_back) = (Duration::MAX, Duration::MAX);
        let mut bytes = 0;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let blocks: Vec<_> = pairs
                .iter()
                .map(|(page, base)| encode(page, base))
                .collect();
            fastest = fastest.min(began.elapsed());
            bytes = blocks.iter().map(|block| block.len().min(PAGE)).sum();
            let began = Instant::now();
            for (block, (page, base)) in blocks.iter().zip(&pairs) {
                let content = decode(block, base);
                assert!(content == *page, "{name} gave another page back");
            }
            fastest_back = fastest_back.min(began.elapsed());
        }
        println!(
            "| {label} | {name} | {:.0} | {:.1} | {:.1} |",
            bytes as f64 / pairs.len() as f64,
            a_page(fastest, pairs.len()),
            a_page(fastest_back, pairs.len()),
        );
    }
}
