//! The end of a process that has a store open.

use std::process::Command;

use crate::cluster::{Cluster, RUN_ID};

const ROLE: &str = "PAGEWIRE_TEST_ENDS_WITH_A_STORE";
/// The first ended with SIGSEGV, or the second, where the network was stopped too late; of 200 none does since.
const PROCESSES: usize = 20;

/// Nobody drops the store: a program may call `exit` at any time. What the store does by itself goes on, on another thread.
#[test]
fn a_process_that_ends_with_a_store_open_ends_in_order() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    if std::env::var_os(ROLE).is_some() {
        return end_with_a_store(&cluster);
    }
    for number in 0..PROCESSES {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("process_end::a_process_that_ends_with_a_store_open_ends_in_order")
            .env(ROLE, "1")
            .env(RUN_ID, Cluster::run_id())
            .output()
            .unwrap();
        assert!(ended.status.success(), "process {number}: {ended:?}");
    }
}

fn end_with_a_store(cluster: &Cluster) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let store = runtime.block_on(cluster.open(&cluster.options()));
    std::mem::forget((store.unwrap(), runtime));
}
