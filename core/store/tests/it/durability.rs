//! What was acknowledged is kept, and what fails takes nothing with it.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kith_store::{Seq, Store, StoreConfig, StoreError, WriteTxn, check};

/// Where the child process of [`what_was_acknowledged_survives_sigkill`] finds its database.
const CHILD: &str = "KITH_STORE_TEST_CHILD";

fn settings(prefix: &'static str, count: u32) -> impl Fn(&WriteTxn<'_>) -> Result<(), StoreError> + Clone {
    move |txn| (0..count).try_for_each(|number| txn.set_setting(&format!("{prefix} {number}"), "x"))
}

async fn has(store: &Store, name: &'static str) -> bool {
    store.read(|txn| txn.setting(name)).await.unwrap().is_some()
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(&PathBuf::from(path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kith.db");
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "durability::what_was_acknowledged_survives_sigkill",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let target = acknowledged.len() + 100 * (round + 1);
        while acknowledged.len() < target {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the child ended by itself");
            acknowledged.extend(acknowledgement(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        // The last line may be cut short.
        let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
        acknowledged.extend(whole.lines().filter_map(acknowledgement));

        let checked = check(&path).unwrap();
        assert!(checked.is_sound(), "{checked:?}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let store = Store::open(&StoreConfig::new(&path)).unwrap();
            let acknowledged = acknowledged.clone();
            store
                .read(move |txn| {
                    for number in acknowledged {
                        let both = (txn.setting(&format!("a{number}"))?, txn.setting(&format!("b{number}"))?);
                        assert!(
                            matches!(both, (Some(_), Some(_))),
                            "{number} was acknowledged and is gone"
                        );
                    }
                    Ok::<_, StoreError>(())
                })
                .await
                .unwrap();
            store.close().await;
        });
    }
}

fn acknowledgement(line: &str) -> Option<u64> {
    line.trim().strip_prefix("acknowledged ")?.parse().ok()
}

/// Sixteen writers at once, each saying what was acknowledged to it, for ever.
fn write_until_killed(path: &Path) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Store::open(&StoreConfig::new(path)).unwrap();
        for _ in 0..16 {
            let store = store.clone();
            tokio::spawn(async move {
                loop {
                    let write = store.write(|txn| {
                        let Seq(number) = txn.next_seq()?;
                        txn.set_setting(&format!("a{number}"), &"x".repeat(500))?;
                        txn.set_setting(&format!("b{number}"), "x")?;
                        Ok::<_, StoreError>(number)
                    });
                    println!("acknowledged {}", write.await.unwrap());
                }
            });
        }
        std::future::pending().await
    })
}

#[tokio::test]
async fn a_job_that_fails_or_panics_takes_nobody_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(folder.path().join("kith.db"));
    let store = Store::open(&config).unwrap();
    // All in one group or in several, as the writer gets to them.
    let good = store.write(settings("good", 3));
    let bad = store.write(|txn| {
        txn.set_setting("bad", "x")?;
        txn.next_seq()?;
        Err::<(), _>(StoreError::Closed)
    });
    let panicked = store.write(|txn| -> Result<(), StoreError> {
        txn.set_setting("panicked", "x")?;
        panic!("on purpose")
    });
    let last = store.write(settings("last", 3));
    let (good, bad, panicked, last) = tokio::join!(good, bad, panicked, last);
    assert!(good.is_ok() && last.is_ok());
    assert!(matches!(bad, Err(StoreError::Closed)));
    assert!(matches!(panicked, Err(StoreError::Panicked)));
    assert!(has(&store, "good 2").await && has(&store, "last 2").await);
    assert!(!has(&store, "bad").await && !has(&store, "panicked").await);
    assert_eq!(*store.committed().borrow(), Seq(0));

    // More panics than there are readers.
    for _ in 0..config.readers + 2 {
        let read = store.read(|_| -> Result<(), StoreError> { panic!("on purpose") });
        assert!(matches!(read.await, Err(StoreError::Panicked)));
    }
    assert!(has(&store, "good 0").await);
    store.close().await;
    assert!(matches!(
        store.write(settings("late", 1)).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        store.read(|txn| txn.setting("good 0")).await,
        Err(StoreError::Closed)
    ));
}

#[tokio::test]
async fn an_abandoned_read_gives_its_connection_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        readers: 1,
        ..StoreConfig::new(folder.path().join("kith.db"))
    };
    let store = Store::open(&config).unwrap();
    let (started_tx, started) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel();
    let reading = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .read(move |_| {
                    started_tx.send(()).unwrap();
                    released.recv().unwrap();
                    Ok::<_, StoreError>(())
                })
                .await
        }
    });
    started.await.unwrap();
    reading.abort();
    assert!(reading.await.unwrap_err().is_cancelled());
    // The only connection is still in use; the next reader waits for it instead of failing.
    let next = tokio::spawn({
        let store = store.clone();
        async move { store.read(|txn| txn.setting("none")).await }
    });
    tokio::task::yield_now().await;
    release.send(()).unwrap();
    assert!(next.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn what_was_queued_before_closing_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(folder.path().join("kith.db"));
    let store = Store::open(&config).unwrap();
    let writes: Vec<_> = (0..300)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write(move |txn| txn.set_setting(&format!("n{number}"), "x"))
                    .await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    store.close().await;
    let mut kept = Vec::new();
    for (number, write) in writes.into_iter().enumerate() {
        match write.await.unwrap() {
            Ok(()) => kept.push(number),
            Err(error) => assert!(matches!(error, StoreError::Closed)),
        }
    }
    assert!(!kept.is_empty());
    let store = Store::open(&config).unwrap();
    let all = store.read(move |txn| {
        kept.into_iter().try_for_each(|number| {
            assert!(txn.setting(&format!("n{number}"))?.is_some());
            Ok::<_, StoreError>(())
        })
    });
    all.await.unwrap();
}
