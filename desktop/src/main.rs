//! `kith`: the daemon, its command line and its page. Decides nothing about rooms; it asks a node.

mod arguments;
mod control;
mod error;
mod memory;
mod operations;
mod page;
mod prompt;
mod reach;
mod run;
mod settings;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, error::ErrorKind};
use kith_node::{
    data_folder::DataFolder,
    doctor::{Finding, Verdict},
    identity::{RecoveryPhrase, qr_text},
    keystore::Keystore,
    relays::Relay,
    status::Status,
};
use ruma::OwnedServerName;

use crate::{
    arguments::{Arguments, Command, Data, PeerCommand, PhraseCommand, RelayCommand, RunOptions, UserCommand},
    error::CommandError,
    reach::Reach,
    settings::SettingsFileError,
};

/// Exit status for arguments that make no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    memory::economise();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return explain_usage(&error),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&CommandError::Runtime(error)),
    };
    let command = arguments.command.unwrap_or(Command::Run(RunOptions::default()));
    match runtime.block_on(carry_out(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn carry_out(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Run(options) => run::run(options).await,
        Command::User(UserCommand::Add {
            name,
            password_stdin,
            data,
        }) => {
            let password = prompt::new_password(password_stdin)?;
            let reach = Reach::find_or_make(&data.folder()?).await?;
            let added = reach.add_user(&name, &password).await;
            reach.leave().await;
            say(&added?.user_id)
        }
        Command::Ticket { qr, data } => {
            let reach = Reach::find_or_make(&data.folder()?).await?;
            let ticket = reach.ticket().await;
            reach.leave().await;
            let ticket = ticket?.ticket;
            if qr {
                say(&qr_text(&ticket)?)?;
            }
            say(&ticket)
        }
        Command::Peer(PeerCommand::Add { ticket, data }) => {
            let introduction = ticket.parse().map_err(CommandError::Introduction)?;
            let reach = Reach::find_or_make(&data.folder()?).await?;
            let added = reach.add_peer(&ticket, introduction).await;
            reach.leave().await;
            added?.servers.iter().try_for_each(|server| say(server.as_str()))
        }
        Command::Relay(RelayCommand::Add { relay, data }) => {
            let reach = Reach::find_or_make(&data.folder()?).await?;
            let added = reach.add_relay(&relay).await;
            reach.leave().await;
            added
        }
        Command::Relay(RelayCommand::Remove { relay, data }) => {
            let reach = Reach::find(&data.folder()?).await?;
            let removed = reach.remove_relay(&relay).await;
            reach.leave().await;
            removed
        }
        Command::Relay(RelayCommand::List { json, data }) => {
            let reach = Reach::find(&data.folder()?).await?;
            let relays = reach.relays().await;
            reach.leave().await;
            let relays = relays?;
            if json {
                return say_json(&relays);
            }
            relays.iter().try_for_each(|relay| say(&describe_relay(relay)))
        }
        Command::Status { json, data } => {
            let reach = Reach::find(&data.folder()?).await?;
            let status = reach.status().await;
            reach.leave().await;
            let status = status?;
            if json {
                say_json(&status)
            } else {
                say(&describe(&status))
            }
        }
        Command::Doctor { json, data } => {
            let reach = Reach::find(&data.folder()?).await?;
            let findings = reach.examine().await;
            reach.leave().await;
            let findings = findings?;
            if json {
                return say_json(&findings);
            }
            findings.iter().try_for_each(|finding| say(&describe_finding(finding)))
        }
        Command::Phrase(PhraseCommand::Show { data }) => show_phrase(&data),
        Command::Phrase(PhraseCommand::Restore { data }) => restore_phrase(&data),
        Command::Backup { file, data } => {
            let file = std::path::absolute(&file).map_err(|source| CommandError::Path { path: file, source })?;
            let reach = Reach::find(&data.folder()?).await?;
            let made = reach.backup(&file).await;
            reach.leave().await;
            made?;
            say(&format!("{}", file.display()))
        }
        Command::Check { file: Some(file), .. } => check(file).await,
        Command::Check { file: None, data } => {
            let folder = data.folder()?;
            let database = DataFolder::database(&folder);
            if !database.exists() {
                return Err(CommandError::NoNode(folder));
            }
            check(database).await
        }
    }
}

/// Keys are files of their own, so this needs no node and asks none.
fn show_phrase(data: &Data) -> Result<(), CommandError> {
    let folder = data.folder()?;
    let identity = Keystore::new(&folder).identity()?;
    let identity = identity.ok_or(CommandError::NoNode(folder))?;
    prompt::hint("Whoever has these words is you. Write them on paper; show them to nobody.");
    say(&RecoveryPhrase::of(&identity).to_string())
}

fn restore_phrase(data: &Data) -> Result<(), CommandError> {
    let folder = data.folder()?;
    let words = prompt::phrase()?;
    let identity = RecoveryPhrase::parse(&words)?.identity();
    let held = DataFolder::hold(&folder)?;
    let name = identity.public();
    Keystore::new(held.path()).restore(identity)?;
    say(&name.to_string())
}

async fn check(database: PathBuf) -> Result<(), CommandError> {
    let file = database.clone();
    let checked = tokio::task::spawn_blocking(move || kith_node::store::check(&file)).await;
    let checked = checked.map_err(|_| CommandError::Interrupted)??;
    if let Some(first) = checked.problems.first() {
        return Err(CommandError::Unsound {
            path: database,
            count: checked.problems.len(),
            first: first.to_string(),
        });
    }
    say(&format!(
        "{} is sound: schema {}, {} rooms, {} events",
        database.display(),
        checked.schema,
        checked.rooms,
        checked.events
    ))
}

fn describe(status: &control::Report) -> String {
    let control::Report {
        node, running, http, ..
    } = status;
    let mut lines = vec![
        format!("name     {}", node.server_name),
        format!("state    {}", if *running { "running" } else { "not running" }),
    ];
    lines.extend(http.as_ref().map(|http| format!("clients  {http}")));
    lines.extend(node.users.iter().map(|user| format!("user     {user}")));
    lines.extend(node.listen.iter().map(|address| format!("listens  {address}")));
    lines.extend(
        node.relays
            .iter()
            .map(|relay| format!("relay    {}", describe_relay(relay))),
    );
    lines.extend(describe_peers(node));
    lines.push(format!("rooms    {}", node.room_count));
    for room in &node.rooms {
        let name = room.name.as_deref().unwrap_or(room.room_id.as_str());
        lines.push(format!("         {} ({} people)", printable(name), room.members));
    }
    for report in &node.reports {
        let event = report.event_id.as_ref().map(|event| event.as_str());
        let room = report.room_id.as_ref().map(|room| room.as_str());
        let user = report.user_id.as_ref().map(|user| user.as_str());
        let what: Vec<&str> = [event, room, user].into_iter().flatten().collect();
        let (what, reason) = (what.join(" in "), printable(&report.reason));
        lines.push(format!(
            "report   {} by {}: {reason}",
            printable(&what),
            report.reporter
        ));
    }
    lines.push(format!("ticket   {}", node.ticket));
    lines.join("\n")
}

fn describe_finding(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Good => "good",
        Verdict::Fair => "fair",
        Verdict::Bad => "BAD ",
    };
    let advice = finding
        .advice
        .iter()
        .map(|advice| format!("\n                {advice}"));
    format!(
        "{verdict}  {:<9} {}{}",
        finding.step,
        finding.found,
        advice.collect::<String>()
    )
}

fn describe_relay(relay: &Relay) -> String {
    let place = if relay.place { "place held" } else { "no place" };
    let origin = if relay.configured { ", configured" } else { "" };
    format!("{} ({place}{origin})", relay.address)
}

fn describe_peers(node: &Status) -> Vec<String> {
    let connected = node.peers.iter().map(|peer| {
        let address = peer.addresses.first().map(String::as_str).unwrap_or_default();
        format!("peer     {} {} {address}", peer.server_name, peer.path.as_str())
    });
    let is_connected = |server: &OwnedServerName| node.peers.iter().any(|peer| peer.server_name == *server);
    let away = node.contacts.iter().filter(|server| !is_connected(server));
    connected
        .chain(away.map(|server| format!("peer     {server} away")))
        .collect()
}

/// A stranger's text must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Prints to standard output. A reader that went away is no fault of the command.
fn say(text: &str) -> Result<(), CommandError> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CommandError::Output(error)),
        _ => Ok(()),
    }
}

fn say_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    say(&serde_json::to_string(value).map_err(CommandError::Json)?)
}

/// One line on standard error, with every cause. A configuration file that makes no sense is as good as such arguments.
fn fail(error: &CommandError) -> ExitCode {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "kith: {}", error::one_line(error));
    match error {
        CommandError::Settings(SettingsFileError::Content { .. }) => ExitCode::from(USAGE),
        _ => ExitCode::FAILURE,
    }
}

fn explain_usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let said = text
        .trim_start_matches("error: ")
        .split("\n\n")
        .next()
        .unwrap_or_default();
    let said: Vec<&str> = said.split_whitespace().collect();
    let _ = writeln!(io::stderr(), "kith: {}; see `kith --help`", said.join(" "));
    ExitCode::from(USAGE)
}
