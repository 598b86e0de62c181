//! What one store keeps when syncs fail and the power goes, step by step: too rare a course of events to wait for. It knows
//! nothing of nodes.

use std::sync::Arc;

use kith_store::{Execution, Store, StoreConfig, StoreError};
use tokio::sync::mpsc;

use crate::{
    disk::{self, DiskDrive, Errors, Machine, Settings},
    faults::Faults,
    random::Dice,
    vfs,
    world::folder_in_memory,
};

/// Courses of events; each has its own dice.
const COURSES: u64 = 60;

/// What happens between a commit whose sync failed and the loss of power.
#[derive(Debug, Clone, Copy)]
enum Between {
    Nothing,
    /// The process ends and begins anew.
    Restart,
}

/// Says what was lost that was acknowledged. This process must do nothing else.
pub(crate) fn run() -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let folder = folder_in_memory();
    let (stopped, _stops) = mpsc::channel(1);
    let disks: Vec<_> = (0..COURSES)
        .map(|course| {
            let settings = Settings {
                file: folder.path().join(format!("{course}.db")),
                skips_syncs: false,
                flips: false,
            };
            DiskDrive::new(
                0,
                settings,
                Dice::new(course, "power"),
                Faults::default(),
                stopped.clone(),
            )
        })
        .collect();
    let watched = disks.clone();
    vfs::install(0, move |path| watched.iter().find_map(|disk| disk.watch(path)));
    let mut problems = Vec::new();
    for (course, disk) in disks.into_iter().enumerate() {
        let between = [Between::Nothing, Between::Restart][course % 2];
        if let Err(problem) = runtime.block_on(course_of_events(&disk, between)) {
            problems.push(format!("course {course}, {between:?} between: {problem}"));
        }
    }
    problems
}

async fn course_of_events(disk: &Arc<DiskDrive>, between: Between) -> Result<(), String> {
    let (mut machine, mut store) = start(disk, false)?;
    put(&store, "first").await.map_err(|error| error.to_string())?;
    disk.set_errors(Errors {
        syncs: 1_000,
        ..Errors::default()
    });
    if put(&store, "unsynced").await.is_ok() {
        return Err("what could not be synced was acknowledged".to_owned());
    }
    disk.set_errors(Errors::default());
    if let Between::Restart = between {
        machine.stop();
        drop(store);
        (machine, store) = start(disk, false)?;
    }
    put(&store, "last").await.map_err(|error| error.to_string())?;
    machine.stop();
    drop(store);
    let (_machine, store) = start(disk, true)?;
    let kept = store.read(|txn| Ok::<_, StoreError>((txn.setting("first")?, txn.setting("last")?)));
    match kept.await {
        Ok((Some(_), Some(_))) => Ok(()),
        Ok((first, last)) => Err(format!(
            "what was acknowledged is there: first {}, last {}",
            first.is_some(),
            last.is_some()
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn start(disk: &Arc<DiskDrive>, power_lost: bool) -> Result<(Arc<Machine>, Store), String> {
    let machine = Machine::start();
    disk.start_after(&machine, power_lost)
        .map_err(|error| error.to_string())?;
    let (mut config, sound) = disk.quietly(|file| {
        let sound = !file.exists() || kith_store::check(file).is_ok_and(|checked| checked.is_sound());
        (StoreConfig::new(file), sound)
    });
    if !sound {
        return Err("the file is damaged".to_owned());
    }
    config.execution = Execution::InPlace(Arc::new(disk::Attached {
        drive: Arc::clone(disk),
        machine: Arc::clone(&machine),
    }));
    let store = Store::open(&config).map_err(|error| error.to_string())?;
    Ok((machine, store))
}

/// Something over many pages, so that half of it is worth nothing.
async fn put(store: &Store, name: &'static str) -> Result<(), StoreError> {
    store.write(move |txn| txn.set_setting(name, &"x".repeat(20_000))).await
}
