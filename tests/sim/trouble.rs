//! What goes wrong in a run, and when: partitions, bad weather, crashes, wrong clocks, bad disks. It knows nothing of rooms.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    disk::{Errors, Moment},
    faults::Fault,
    network::Weather,
    random::Dice,
    world::World,
};

/// The farthest that a clock goes wrong, in milliseconds.
const MAX_CLOCK_ERROR: u64 = 48 * 3_600_000;

/// Starts every node that has stopped, some time later. Ends with the world.
pub(crate) async fn supervise(world: Arc<World>, dice: Dice, mut stopped: mpsc::Receiver<usize>) {
    while let Some(number) = stopped.recv().await {
        world.bury(number);
        let down = Duration::from_millis(dice.between(500, 600_000));
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            sleep(down).await;
            world.faults.count(Fault::Restarted);
            world.boot(number).await;
        });
    }
}

/// Makes trouble until a time, and leaves a healthy world: everybody up, connected, with room and the right time.
pub(crate) async fn trouble(world: Arc<World>, dice: Dice, until: Instant) {
    while Instant::now() < until {
        let lasts = Duration::from_millis(dice.between(20_000, 900_000));
        tokio::spawn(one(Arc::clone(&world), dice.clone(), lasts.min(until - Instant::now())));
        sleep(Duration::from_millis(dice.between(20_000, 240_000))).await;
    }
}

/// Ends all trouble, and waits until every node runs.
pub(crate) async fn heal(world: &World) {
    world.trace.note("heals");
    world.wires.set_weather(Weather::default());
    world.wires.part([]);
    world.wires.part_one_way([]);
    for node in &world.nodes {
        node.disk.set_slow(false);
        node.disk.set_room(None);
        node.disk.set_errors(Errors::default());
        node.disk.stop_at(None);
        node.clock.set_wrong(0);
    }
    loop {
        // Whoever stopped at this very moment is noticed first.
        sleep(Duration::from_secs(1)).await;
        if (0..world.nodes.len()).all(|number| world.homeserver(number).is_some()) {
            break;
        }
    }
    world.wires.reconnect();
}

/// One piece of trouble.
async fn one(world: Arc<World>, dice: Dice, lasts: Duration) {
    let mut order: Vec<usize> = (0..world.nodes.len()).collect();
    dice.shuffle(&mut order);
    let node = order[0];
    match dice.between(0, 99) {
        0..=19 => {
            let (left, right) = order.split_at(usize::try_from(dice.between(1, order.len() as u64 / 2)).unwrap_or(1));
            world.trace.note(format_args!("{left:?} and {right:?} are parted"));
            let across = left.iter().flat_map(|a| right.iter().map(|b| (*a, *b)));
            world.wires.part(across);
            sleep(lasts).await;
            world.wires.part([]);
        }
        20..=29 => {
            let (from, to) = order.split_at(usize::try_from(dice.between(1, order.len() as u64 / 2)).unwrap_or(1));
            world.trace.note(format_args!("{to:?} hear nothing of {from:?}"));
            world
                .wires
                .part_one_way(from.iter().flat_map(|a| to.iter().map(|b| (*a, *b))));
            sleep(lasts).await;
            world.wires.part_one_way([]);
        }
        30..=49 => {
            let weather = Weather {
                loss: u32::try_from(dice.between(0, 25)).unwrap_or(0),
                answer_loss: u32::try_from(dice.between(0, 25)).unwrap_or(0),
                repeat: u32::try_from(dice.between(0, 30)).unwrap_or(0),
                slow: u32::try_from(dice.between(0, 30)).unwrap_or(0),
            };
            world.trace.note(format_args!("{weather:?}"));
            world.wires.set_weather(weather);
            sleep(lasts).await;
            world.wires.set_weather(Weather::default());
        }
        50..=64 => {
            let moment = *dice.choose(&Moment::ALL).unwrap_or(&Moment::BeforeCommit);
            world.nodes[node].disk.stop_at(Some((dice.between(0, 8), moment)));
        }
        65..=74 => world.crash(node),
        75..=84 => wrong_clock(&world, &dice, node, lasts).await,
        85..=88 => {
            world.nodes[node].disk.set_slow(true);
            sleep(lasts).await;
            world.nodes[node].disk.set_slow(false);
        }
        89..=94 => {
            let chance = |most| u32::try_from(dice.between(0, most)).unwrap_or(0);
            let errors = Errors {
                reads: chance(30),
                writes: chance(30),
                syncs: chance(300),
            };
            world.trace.note(format_args!("the disk of {node} has {errors:?}"));
            world.nodes[node].disk.set_errors(errors);
            sleep(lasts).await;
            world.nodes[node].disk.set_errors(Errors::default());
        }
        _ => {
            world.nodes[node].disk.set_room(Some(dice.between(0, 300_000)));
            sleep(lasts).await;
            world.nodes[node].disk.set_room(None);
        }
    }
}

async fn wrong_clock(world: &World, dice: &Dice, node: usize, lasts: Duration) {
    let clock = &world.nodes[node].clock;
    let by =
        i64::try_from(dice.between(1, 2 * MAX_CLOCK_ERROR)).unwrap_or(0) - i64::try_from(MAX_CLOCK_ERROR).unwrap_or(0);
    let turn = |from: i64, to: i64| {
        world.faults.count(if to > from {
            Fault::ClockForward
        } else {
            Fault::ClockBack
        });
        world.trace.note(format_args!("{node} has its clock wrong by {to} ms"));
        clock.set_wrong(to);
    };
    turn(clock.wrong(), by);
    sleep(lasts).await;
    turn(by, 0);
}
