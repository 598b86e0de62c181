//! A node inside this program, in a process of its own, which is suspended and resumed as apps do it: `kith` has no command for
//! that. It does what the lines of its input say.

use std::{path::PathBuf, time::Instant};

use axum::Router;
use kith_node::{Node, config::Config};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

/// What it says once it serves.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) ticket: String,
    pub(crate) socket: PathBuf,
}

/// What it says when it has done what a line told.
#[derive(Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) seconds: f64,
}

/// Runs a node over a data folder with these relays, until the end of input.
pub(crate) async fn run(data: PathBuf, relays: &[String]) {
    let mut config = Config::new(&data);
    (config.mdns, config.upnp) = (false, false);
    config.relays = relays.iter().map(|relay| relay.parse().expect("an address")).collect();
    let node = Node::start(config).await.expect("the node starts");
    let socket = data.join("sleeper.sock");
    node.serve_socket(&socket, Router::new()).await.expect("a socket");
    let ticket = node
        .ticket()
        .await
        .expect("a ticket")
        .encode_fitting()
        .expect("a ticket");
    say(&Ready { ticket, socket });
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let start = Instant::now();
        let done = match line.as_str() {
            "suspend" => node.suspend(false).await,
            "doze" => node.suspend(true).await,
            _ => node.resume().await,
        };
        done.expect("the node does it");
        let seconds = start.elapsed().as_secs_f64();
        say(&Done { seconds });
    }
    node.shutdown().await;
}

fn say(what: &impl Serialize) {
    println!("{}", serde_json::to_string(what).expect("JSON"));
}
