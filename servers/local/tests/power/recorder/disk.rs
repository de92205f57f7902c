//! The disk as it may be when the power goes: what of the calls that were recorded is on it.

use std::path::Path;

use super::{DATA, Event, FILES, MAKING, NAMES, Recording};

const SECTOR: usize = 512;
/// The engine's first two pages have its roots.
const ROOTS_END: usize = 2 * 4096;

/// How much of what is not synced is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Nothing,
    Everything,
    /// The last write overtook all others.
    OnlyTheLast,
    /// Each sector with even odds, by this seed.
    Sectors(u64),
    /// Each sector is as before, written, torn within, or trash (as in SQLite's test6.c), by this seed.
    Trash(u64),
}

/// What the files are; `None` where there is none. And whether the store is being made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) [Option<Vec<u8>>; 4], pub(crate) bool);

impl Image {
    /// As they are in a directory.
    pub(crate) fn read(directory: &Path) -> Self {
        Self(
            FILES.map(|name| std::fs::read(directory.join(name)).ok()),
            directory.join(MAKING).exists(),
        )
    }

    /// Makes a directory with them.
    pub(crate) fn write(&self, directory: &Path) {
        std::fs::create_dir(directory).unwrap();
        if self.1 {
            std::fs::write(directory.join(MAKING), []).unwrap();
        }
        for (name, bytes) in FILES.iter().zip(&self.0) {
            let Some(bytes) = bytes else { continue };
            let used = bytes.iter().rposition(|byte| *byte != 0);
            std::fs::write(directory.join(name), &bytes[..used.map_or(0, |at| at + 1)]).unwrap();
            let file = std::fs::File::options()
                .write(true)
                .open(directory.join(name));
            file.unwrap().set_len(bytes.len() as u64).unwrap();
        }
    }
}

impl Recording {
    /// The files when so many events were over, the next one under way.
    pub(crate) fn image(&self, moment: usize, disk: Disk) -> Image {
        let events = self.events.lock();
        let over = &events[..moment];
        let ends = ends(over);
        let mut random = match disk {
            Disk::Sectors(seed) | Disk::Trash(seed) => Random::new(seed),
            _ => Random::new(1),
        };
        let last_name = over
            .iter()
            .rposition(|event| matches!(event, Event::Name(..)));
        let mut image = self.before.clone();
        // How often each name was that of a new file, and whether that one has it on the disk.
        let mut files = image.0.each_ref().map(|file| (0, file.is_some()));
        // Durable by the last sync, or by itself: in the order of the calls.
        let mut loose: Vec<(usize, usize, &Event)> = Vec::new();
        for (index, (end, event)) in ends.iter().zip(over).enumerate() {
            match event {
                Event::Name(name, is_there) => {
                    let is_done = *end == Some(true)
                        || match disk {
                            Disk::Nothing => false,
                            Disk::Everything => true,
                            Disk::OnlyTheLast => Some(index) == last_name,
                            Disk::Sectors(_) | Disk::Trash(_) => random.next() & 1 == 0,
                        };
                    let Some((made, has_it)) = files.get_mut(*name) else {
                        image.1 = if is_done { *is_there } else { image.1 };
                        continue;
                    };
                    *made += usize::from(*is_there);
                    *has_it = *is_there && is_done;
                    if is_done {
                        image.0[*name] = is_there.then(Vec::new);
                    }
                }
                Event::Write { file, synced, .. } => {
                    // What shows in the files is not held back from them.
                    if *end == Some(true) || *synced || disk == Disk::Everything {
                        if files[*file].1 {
                            put(&mut image, event);
                        }
                    } else if end.is_none() {
                        loose.push((*file, files[*file].0, event));
                    }
                }
                Event::Length(file, _) => {
                    if *end == Some(true) || disk == Disk::Everything {
                        if files[*file].1 {
                            put(&mut image, event);
                        }
                    } else if end.is_none() {
                        loose.push((*file, files[*file].0, event));
                    }
                }
                _ => {}
            }
        }
        // A write that has not returned may be there in part, be it one that is synced.
        if let Some(event @ (Event::Write { file, .. } | Event::Length(file, _))) =
            events.get(moment)
        {
            loose.push((*file, files[*file].0, event));
        }
        // What was written to a file of which the disk does not know is nowhere.
        loose.retain(|(file, made, _)| files[*file] == (*made, true));
        let loose: Vec<&Event> = loose.into_iter().map(|(_, _, event)| event).collect();
        match disk {
            Disk::Nothing => {}
            Disk::Everything => loose.iter().for_each(|event| put(&mut image, event)),
            Disk::OnlyTheLast => loose
                .last()
                .into_iter()
                .for_each(|event| put(&mut image, event)),
            Disk::Sectors(_) | Disk::Trash(_) => {
                let has_trash = matches!(disk, Disk::Trash(_));
                for event in loose {
                    put_in_part(&mut image, event, has_trash, &mut random);
                }
            }
        }
        image
    }
}

/// Of each event: whether a sync says that it is on the disk, or one that failed says that it is not.
fn ends(over: &[Event]) -> Vec<Option<bool>> {
    let mut ends = vec![None; over.len()];
    // Of each file, and of the directory.
    let mut pending: [Vec<usize>; NAMES] = Default::default();
    for (index, event) in over.iter().enumerate() {
        let (of, began, is_durable) = match event {
            Event::Write { file, .. } | Event::Length(file, _) => {
                pending[*file].push(index);
                continue;
            }
            Event::Name(..) => {
                pending[FILES.len()].push(index);
                continue;
            }
            Event::Names(began) => (FILES.len(), *began, true),
            Event::Sync(file, began) => (*file, *began, true),
            Event::Lost(file, began) => (*file, *began, false),
            Event::Acknowledged(..) => continue,
        };
        let of_it = pending[of].partition_point(|index| *index < began);
        for index in pending[of].drain(..of_it) {
            ends[index] = Some(is_durable);
        }
    }
    ends
}

/// Does all that a write, or a length that is set, does.
fn put(image: &mut Image, event: &Event) {
    match event {
        Event::Write {
            file,
            offset,
            bytes,
            ..
        } => put_bytes(image, *file, *offset, bytes),
        Event::Length(file, length) => image.0[*file].get_or_insert_default().resize(*length, 0),
        _ => {}
    }
}

fn put_bytes(image: &mut Image, file: usize, offset: usize, bytes: &[u8]) {
    let image = image.0[file].get_or_insert_default();
    image.resize(image.len().max(offset + bytes.len()), 0);
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Does some of it.
fn put_in_part(image: &mut Image, event: &Event, has_trash: bool, random: &mut Random) {
    let Event::Write {
        file,
        offset: at,
        bytes,
        ..
    } = event
    else {
        if random.next() & 1 == 0 {
            put(image, event);
        }
        return;
    };
    let is_root = *file == DATA && *at < ROOTS_END;
    let (mut from, end) = (*at, at + bytes.len());
    while from < end {
        let to = end.min((from / SECTOR + 1) * SECTOR);
        let mut piece = bytes[from - at..to - at].to_vec();
        let there = image.0[*file].as_ref();
        let there = there.and_then(|there| there.get(from..to));
        let is_same = there == Some(&piece[..]);
        match random.next() % if has_trash { 4 } else { 2 } {
            // As it was.
            0 => {}
            2 if !is_same => {
                piece
                    .iter_mut()
                    .for_each(|byte| *byte = random.next() as u8);
                put_bytes(image, *file, from, &piece);
            }
            3 if !is_same && !is_root => {
                // Its beginning, or its end.
                let cut = random.next() as usize % piece.len();
                match random.next() & 1 {
                    0 => put_bytes(image, *file, from, &piece[..cut]),
                    _ => put_bytes(image, *file, from + cut, &piece[cut..]),
                }
            }
            _ => put_bytes(image, *file, from, &piece),
        }
        from = to;
    }
}

/// Small and repeatable.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Spread over all bits (splitmix64): the first numbers of small seeds are alike otherwise.
        let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((bits ^ bits >> 31) | 1)
    }

    pub(crate) fn seed() -> u64 {
        let id = pagewire_proto::CommitId::random().unwrap();
        u64::from_be_bytes(*id.as_bytes().first_chunk().unwrap()) >> 1
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1
    }
}
