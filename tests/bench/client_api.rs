//! The client API, beside Synapse under the same load in the same run. Rounds alternate, so that a noisy machine
//! troubles both alike.

use std::time::Instant;

use futures::{StreamExt, stream};
use kith_tests::{Client, Node, NodeOptions};
use serde_json::json;

use crate::{Table, percentile, process::cpu_seconds, sorted, synapse::Synapse};

const ROUNDS: usize = 3;
const MESSAGES: usize = 300;
const IN_FLIGHT: usize = 16;
const WAKE_UPS: usize = 60;
const ROOMS: usize = 50;

#[derive(Default)]
struct Figures {
    one_at_a_time: Vec<f64>,
    in_flight: Vec<f64>,
    cpu_ms_per_message: Vec<f64>,
    wake_up_ms: Vec<f64>,
    initial_sync_ms: Vec<f64>,
}

struct Subject {
    url: String,
    pid: u32,
    sender: Client,
    room: String,
    figures: Figures,
}

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let node = Node::start(NodeOptions::default()).await;
    node.add_user("bench", "correct horse").await;
    let mut subjects = vec![subject(node.ready.http.clone(), node.pid()).await];
    let synapse = Synapse::start().await;
    if let Some(synapse) = &synapse {
        synapse.add_user("bench", "correct horse").await;
        subjects.push(subject(synapse.url.clone(), synapse.pid()).await);
    }
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            send(subject).await;
            wake(subject).await;
        }
    }
    for subject in &mut subjects {
        many_rooms(subject).await;
    }
    tabulate(&subjects.into_iter().map(|subject| subject.figures).collect::<Vec<_>>())
}

async fn subject(url: String, pid: u32) -> Subject {
    let sender = Client::log_in(&url, "bench", "correct horse").await;
    let room = sender.create_room(json!({"preset": "private_chat"})).await;
    Subject {
        url,
        pid,
        sender,
        room,
        figures: Figures::default(),
    }
}

async fn send(subject: &mut Subject) {
    let (sender, room) = (&subject.sender, subject.room.as_str());
    let start = Instant::now();
    for number in 0..MESSAGES / 4 {
        sender.send_text(room, &format!("message {number}")).await;
    }
    subject
        .figures
        .one_at_a_time
        .push((MESSAGES / 4) as f64 / start.elapsed().as_secs_f64());

    let (start, cpu) = (Instant::now(), cpu_seconds(subject.pid));
    let sends = (0..MESSAGES).map(|number| async move { sender.send_text(room, &format!("message {number}")).await });
    stream::iter(sends)
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<_>>()
        .await;
    subject
        .figures
        .in_flight
        .push(MESSAGES as f64 / start.elapsed().as_secs_f64());
    let cpu = cpu_seconds(subject.pid) - cpu;
    subject.figures.cpu_ms_per_message.push(cpu * 1000.0 / MESSAGES as f64);
}

/// From a send's start to the long poll's answer on another connection.
async fn wake(subject: &mut Subject) {
    let mut reader = Client::log_in(&subject.url, "bench", "correct horse").await;
    reader.sync(0).await;
    for number in 0..WAKE_UPS / ROUNDS {
        let text = format!("wake {number}");
        // The poll is in flight before the message is sent: its first poll writes the request.
        let mut polling = Box::pin(reader.texts_until(&subject.room, std::slice::from_ref(&text)));
        let _ = futures::poll!(&mut polling);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let start = Instant::now();
        let (_, _) = futures::join!(subject.sender.send_text(&subject.room, &text), polling);
        subject.figures.wake_up_ms.push(start.elapsed().as_secs_f64() * 1000.0);
    }
}

async fn many_rooms(subject: &mut Subject) {
    for number in 0..ROOMS {
        let room = subject
            .sender
            .create_room(json!({"preset": "private_chat", "name": format!("Room {number}")}))
            .await;
        for number in 0..20 {
            subject.sender.send_text(&room, &format!("message {number}")).await;
        }
    }
    for _ in 0..5 {
        let mut fresh = Client::log_in(&subject.url, "bench", "correct horse").await;
        let start = Instant::now();
        let answer = fresh.sync(0).await;
        subject
            .figures
            .initial_sync_ms
            .push(start.elapsed().as_secs_f64() * 1000.0);
        assert!(
            answer["rooms"]["join"]
                .as_object()
                .is_some_and(|rooms| rooms.len() > ROOMS)
        );
    }
}

fn tabulate(figures: &[Figures]) -> Table {
    let mut table = Table::new(
        "Client API, Kith beside Synapse (SQLite), same load, alternating rounds",
        &["measured", "Kith", "Synapse", "ratio"],
    );
    let median = |values: &Vec<f64>| percentile(&sorted(values.clone()), 50.0);
    let mut row = |what: &str, of: fn(&Figures) -> &Vec<f64>, more_is_better: bool, unit: &str| {
        let kith = median(of(&figures[0]));
        let other = figures.get(1).map(|figures| median(of(figures)));
        let ratio = other.map(|other| if more_is_better { kith / other } else { other / kith });
        let text =
            |value: Option<f64>, unit: &str| value.map_or("not run".to_owned(), |value| format!("{value:.1}{unit}"));
        table.row([
            what.to_owned(),
            text(Some(kith), unit),
            text(other, unit),
            text(ratio, "×"),
        ]);
    };
    row(
        "messages per second, one at a time",
        |figures| &figures.one_at_a_time,
        true,
        "",
    );
    row(
        "messages per second, 16 in flight",
        |figures| &figures.in_flight,
        true,
        "",
    );
    row(
        "CPU per message, 16 in flight",
        |figures| &figures.cpu_ms_per_message,
        false,
        " ms",
    );
    row(
        "`/sync` wake-up, send to answer, median",
        |figures| &figures.wake_up_ms,
        false,
        " ms",
    );
    row(
        "initial sync of 50 rooms, median",
        |figures| &figures.initial_sync_ms,
        false,
        " ms",
    );
    table
}
