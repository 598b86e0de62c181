//! What must not grow: rows, forks, debts and memory of a healed world stay within bounds that what happened in it explains.
//! It looks and changes nothing.

use kith_engine::{RoomReader, limits::MAX_EXTREMITIES};
use kith_node::{Error, Homeserver};
use rusqlite::{Connection, OpenFlags};

use crate::{checker::Finding, world::World};

/// Rows of all tables for each event of a node at the most, and those that are there without any.
const ROWS_FOR_EACH_EVENT: u64 = 60;
const ROWS: u64 = 3_000;
/// Of so many events one may be a join of forks, beside a few.
const EVENTS_FOR_EACH_DUMMY: u64 = 3;
const DUMMIES: u64 = 10;
/// Bytes of the whole process at the most, for each node and all it remembers, and beside.
const MEMORY_FOR_EACH_NODE: u64 = 24 * 1024 * 1024;
const MEMORY: u64 = 64 * 1024 * 1024;

/// What is in a node's file.
struct Rows {
    events: u64,
    dummies: u64,
    all: u64,
}

/// Looks at every node, and at the process.
pub(crate) async fn check(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(Finding(what));
    for (number, node) in world.nodes.iter().enumerate() {
        let Some(hs) = world.homeserver(number) else {
            find(format!("node {number} does not run"));
            continue;
        };
        match debts(&hs).await {
            Ok(debts) => debts
                .into_iter()
                .for_each(|debt| find(format!("node {number}: {debt}"))),
            Err(error) => find(format!("node {number} cannot be read: {error}")),
        }
        match node.disk.quietly(Rows::count) {
            Ok(rows) => {
                if rows.dummies > DUMMIES + rows.events / EVENTS_FOR_EACH_DUMMY {
                    find(format!(
                        "node {number}: {} of {} events only join forks",
                        rows.dummies, rows.events
                    ));
                }
                if rows.all > ROWS + rows.events * ROWS_FOR_EACH_EVENT {
                    find(format!("node {number}: {} rows for {} events", rows.all, rows.events));
                }
            }
            Err(error) => find(format!("the file of node {number} cannot be read: {error}")),
        }
    }
    let most = MEMORY + MEMORY_FOR_EACH_NODE * world.nodes.len() as u64;
    if let Some(memory) = peak_memory().filter(|memory| *memory > most) {
        find(format!("{memory} bytes of memory for {} nodes", world.nodes.len()));
    }
    findings
}

/// What a node of a healed world still means to do.
async fn debts(hs: &Homeserver) -> Result<Vec<String>, Error> {
    let own = hs.context.server_name.clone();
    hs.context
        .store
        .read(move |txn| {
            let mut debts = Vec::new();
            let mut owe = |count: usize, most: usize, what: &str| {
                if count > most {
                    debts.push(format!("{count} {what}"));
                }
            };
            let waiting = usize::try_from(txn.outbox_len()?).unwrap_or(usize::MAX);
            owe(waiting, 0, "rows wait in the outbox");
            owe(txn.owed_leaves()?.len(), 0, "rejections are owed");
            for room in txn.rooms_of_server(&own)? {
                let forks = txn.forward_extremities(&room)?.len();
                owe(forks, MAX_EXTREMITIES, &format!("forward extremities in {room}"));
                owe(txn.gaps(&room)?.len(), 0, &format!("gaps in {room}"));
            }
            Ok(debts)
        })
        .await
}

impl Rows {
    fn count(file: &std::path::Path) -> rusqlite::Result<Self> {
        let conn = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, u64>(0));
        let mut statement = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
        let tables = statement.query_map([], |row| row.get::<_, String>(0))?;
        let tables: Vec<String> = tables.collect::<Result<_, _>>()?;
        let mut all = 0;
        for table in tables.iter().filter(|table| !table.starts_with("sqlite_")) {
            all += count(&format!("SELECT count(*) FROM \"{table}\""))?;
        }
        Ok(Self {
            events: count("SELECT count(*) FROM events")?,
            dummies: count(r#"SELECT count(*) FROM events WHERE json LIKE '%"type":"org.matrix.dummy_event"%'"#)?,
            all,
        })
    }
}

/// The most memory that this process has had, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
