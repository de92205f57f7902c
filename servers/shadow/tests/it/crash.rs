//! A process that dies in every call of a workload: what the next one finds keeps the contract.

use std::sync::Arc;

use pagewire_proto::{CommitId, DatabaseId, Epoch, Version};
use pagewire_server::store::{Commit, CommitOutcome, PageStore, Resolution, Resolve, StoreError};
use pagewire_shadow::testing::{Death, Medium};

use crate::scene::{PAGES, Server, greedy, name, part, server, server_with};

/// What the world knows when the process is dead.
#[derive(Default)]
struct Known {
    databases: Vec<DatabaseId>,
    epochs: Vec<Epoch>,
    /// Versions that were acknowledged.
    heads: [u64; 3],
    /// The commit under way: its id and the databases with their bases.
    under_way: Option<(CommitId, Vec<(usize, u64)>)>,
    removed: bool,
    /// The last epoch that was handed out for each database by the workload.
    finished: bool,
}

async fn commit(server: &Server, known: &mut Known, of: &[usize]) -> Result<(), StoreError> {
    let id = CommitId::random().unwrap();
    let parts: Vec<_> = of
        .iter()
        .map(|index| (*index, known.heads[*index]))
        .collect();
    known.under_way = Some((id, parts.clone()));
    let databases = parts
        .iter()
        .map(|(index, base)| part(known.databases[*index], *base, known.epochs[*index]))
        .collect();
    let outcome = server.store.commit(Commit { id, databases }).await?;
    assert!(
        matches!(outcome, CommitOutcome::Committed(_)),
        "{outcome:?}"
    );
    known.under_way = None;
    for index in of {
        known.heads[*index] += 1;
    }
    Ok(())
}

/// Everything that writes, ended by the first error: databases 0 and 1 are always committed together, 2 alone.
async fn workload(server: &Server, known: &mut Known) -> Result<(), StoreError> {
    for index in 0..3 {
        let id = server.store.lookup(&name(&index.to_string()), true).await?;
        known.databases.push(id);
        known.epochs.push(server.store.fence(id).await?);
    }
    for _ in 0..2 {
        commit(server, known, &[0, 1]).await?;
        commit(server, known, &[2]).await?;
    }
    // Stagings, one of them given up; the commit is found by its content.
    let (id, epoch) = (known.databases[2], known.epochs[2]);
    known.under_way = Some((CommitId::from_bytes([0; 16]), vec![(2, known.heads[2])]));
    server.commit_staged(id, known.heads[2], epoch).await?;
    known.under_way = None;
    known.heads[2] += 1;
    known.epochs[0] = server.store.fence(known.databases[0]).await?;
    commit(server, known, &[1, 0]).await?;
    let gone = server.store.lookup(&name("gone"), true).await?;
    let epoch = server.store.fence(gone).await?;
    server
        .store
        .commit(crate::scene::commit_of(vec![part(gone, 0, epoch)]))
        .await?;
    server.store.remove(&name("gone")).await?;
    known.removed = true;
    server.store.collect(None).await?;
    server.store.collect(Some(known.databases[2])).await?;
    known.finished = true;
    Ok(())
}

async fn check(medium: &Arc<Medium>, mut known: Known, what: &str) {
    let server = server_with(medium, greedy()).await;
    // The acknowledged is there, the rest is whole or not there.
    for (index, id) in known.databases.iter().enumerate() {
        let head = server.check(*id).await;
        let acknowledged = known.heads[index];
        let under_way = known.under_way.iter().flat_map(|(_, parts)| parts);
        let may = under_way.filter(|(other, _)| *other == index).count() as u64;
        assert!(
            (acknowledged..=acknowledged + may).contains(&head),
            "{what}: database {index} is at {head}, acknowledged is {acknowledged}"
        );
    }
    if known.databases.len() == 3 {
        let heads = (
            server.head(known.databases[0]).await,
            server.head(known.databases[1]).await,
        );
        assert_eq!(
            heads.0, heads.1,
            "{what}: a commit of two databases is torn"
        );
    }
    // What was under way is settled, and what is said then holds.
    if let Some((commit, parts)) = &known.under_way {
        let participants: Vec<_> = parts
            .iter()
            .map(|(index, base)| {
                (
                    known.databases[*index],
                    Version::new(*base),
                    known.epochs[*index],
                )
            })
            .collect();
        let resolve = Resolve {
            id: *commit,
            participants: participants.clone(),
        };
        let resolution = server.store.resolve(resolve).await.unwrap();
        let made = server.head(participants[0].0).await > participants[0].1.get();
        let staged = *commit == CommitId::from_bytes([0; 16]);
        match resolution {
            Resolution::Committed(_) => assert!(made, "{what}"),
            Resolution::Aborted { .. } => assert!(!made || staged, "{what}"),
            Resolution::Unknown(why) => panic!("{what}: {why}"),
        }
        // A delayed original, from whatever is left of the dead process.
        let databases = participants
            .iter()
            .map(|(id, base, epoch)| part(*id, base.get(), *epoch));
        let again = Commit {
            id: *commit,
            databases: databases.collect(),
        };
        let outcome = server.store.commit(again).await.unwrap();
        assert_eq!(
            matches!(outcome, CommitOutcome::Committed(_)),
            made && !staged,
            "{what}: {outcome:?}"
        );
    }
    // Everything works again.
    let again: Vec<_> = known.databases.clone();
    for (index, id) in again.iter().enumerate() {
        let epoch = server.fence(*id).await;
        assert!(
            known.epochs.get(index).is_none_or(|old| epoch > *old),
            "{what}"
        );
        match known.epochs.get_mut(index) {
            Some(old) => *old = epoch,
            None => known.epochs.push(epoch),
        }
    }
    if again.len() == 3 {
        let parts: Vec<_> = [1, 0, 2]
            .map(|index: usize| (again[index], known.epochs[index]))
            .into();
        let mut full = Vec::new();
        for (id, epoch) in parts {
            full.push((id, server.head(id).await, epoch));
        }
        server.commits(&full).await;
        for id in &again {
            server.check(*id).await;
        }
    }
    if known.removed {
        let found = server.store.lookup(&name("gone"), false).await;
        assert!(matches!(found, Err(StoreError::DatabaseNotFound)), "{what}");
    }
    // And nothing is left behind: no decision, and no segment but those that are named.
    server.collect_all().await;
    assert_eq!(medium.keys("t/"), Vec::<String>::new(), "{what}");
    for id in &again {
        let segments = medium.keys(&format!("d/{id}/")).len();
        assert!(
            segments <= PAGES as usize,
            "{what}: {segments} segments are left"
        );
        server.check(*id).await;
    }
    let named: Vec<_> = medium
        .keys("d/")
        .into_iter()
        .filter(|key| !again.iter().any(|id| key.starts_with(&format!("d/{id}/"))))
        .collect();
    let alive = medium.keys("r/").len();
    assert!(named.len() <= alive, "{what}: {named:?}");
}

/// Time is paused: what is left of a dead process waits for answers in vain.
#[tokio::test(start_paused = true)]
async fn a_process_that_dies_in_any_call_leaves_what_the_contract_says() {
    let medium = Arc::new(Medium::default());
    let whole = server(&medium).await;
    let mut known = Known::default();
    workload(&whole, &mut known).await.unwrap();
    assert!(known.finished);
    let calls = whole.kv.total();
    check(&medium, known, "undisturbed").await;
    for call in 1..=calls {
        for death in [Death::Before(call), Death::After(call)] {
            let medium = Arc::new(Medium::default());
            let kv = pagewire_shadow::testing::TestKeyValue::new(&medium);
            kv.dies(death);
            let store = pagewire_shadow::ShadowStore::open(Arc::clone(&kv) as _).await;
            let mut known = Known::default();
            if let Ok(store) = store {
                let server = Server {
                    kv,
                    store: Arc::new(store),
                };
                let ended = workload(&server, &mut known).await;
                assert!(ended.is_err() || known.finished);
            }
            check(&medium, known, &format!("{death:?} of {calls}")).await;
        }
    }
    // Long enough that it is about something.
    assert!(calls > 50, "{calls} calls");
}
