//! Topics (`protocol.md` section 4): libp2p's gossipsub among the members of a topic. Each message goes to a few connected
//! members, who check the topic's signature and pass it on. Reads no message, and promises no delivery.
//!
//! What differs from gossipsub among strangers: only servers that are known by name and are members of a topic take part
//! in it ([`Behaviour`]); a connection carries no gossip before ([`Handler`]); and time passes only while there is something to
//! pass on, so that an idle topic costs nothing.

mod admission;
mod allowance;
mod behaviour;
mod handler;
mod silence;
#[cfg(test)]
mod simulation;

use std::time::Duration;

use bytes::Bytes;
use kith_identity::{TopicKey, TopicName};
use libp2p::gossipsub::{
    Config, ConfigBuilder, ConfigBuilderError, Message, MessageId, PeerScoreParams, PeerScoreThresholds,
    TopicScoreParams, ValidationMode, score_parameter_decay,
};
use ruma::OwnedServerName;
use sha2::{Digest, Sha256};

pub(crate) use self::behaviour::{Behaviour, Followers, Members, TopicEvent};
pub(crate) use self::handler::Handler;

/// Members that pass a topic's messages to each other straight: wanted, at the least, and at the most. So many copies of a
/// message leave its sender, and one less everybody else. Who has as many as may be lets one go at the next beat: there is
/// always room somewhere for those who come.
const MESH: usize = 4;
const MESH_LOW: usize = 2;
const MESH_HIGH: usize = 5;

/// Members that are told which messages there are, at each beat, besides those that get them: so many, or this share of them.
const LAZY: usize = 2;
const LAZY_SHARE: f64 = 0.2;

/// Time between beats: the mesh is mended, and others hear what there was.
const BEAT: Duration = Duration::from_secs(2);

/// Beats for which a message is kept for those who ask, and told of.
const KEPT_BEATS: usize = 5;
const TOLD_BEATS: usize = 2;

/// Beats after which one more member is tried, if half of the mesh has brought no news lately.
const RENEWAL_BEATS: u64 = 30;

/// Beats until who was turned away may ask again.
const BACKOFF_BEATS: u32 = 5;

/// For how long a message that comes again is known.
const REMEMBERED: Duration = Duration::from_secs(2 * 60);

/// Messages that wait for one peer.
const SEND_QUEUE: usize = 512;

/// A message that could not be given to a peer for this long is not given to it.
const STALE: Duration = Duration::from_secs(10);

/// Bytes of a message's id.
const ID: usize = 20;

/// Bytes of a message's envelope: topic and lengths.
const ENVELOPE: usize = 1 << 10;

/// Who passed on what no member made is not listened to for about this long.
const PUNISHED: Duration = Duration::from_secs(60 * 60);

/// What a member is worth that passes nothing on: too little for a mesh, or to be told of messages.
const SILENT_SCORE: f64 = -1.0;
/// In trouble, what a member is worth that never passed anything on: too little for a mesh.
const UNPROVEN_SCORE: f64 = -0.1;
const SCORE_WEIGHT: f64 = 70.0;

/// A message of a topic, signed with the topic's key. Nothing more is known about who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMessage {
    /// The topic.
    pub topic: TopicName,
    /// Who passed it on to this node.
    pub from: OwnedServerName,
    /// What [`kith_identity::TopicSecret::open`] takes.
    pub message: Bytes,
}

/// Why a message went to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// This node does not follow the topic.
    #[error("the topic is not followed")]
    NotFollowed,
    /// No connected server follows the topic, as far as is known.
    #[error("nobody who is connected follows the topic")]
    NobodyThere,
    /// The message exceeds [`TopicKey::MAX_MESSAGE`], or the topic's key did not sign it.
    #[error("no message of this topic")]
    NotValid,
    /// The same message was sent, or came in, a short while ago.
    #[error("the message was sent already")]
    Duplicate,
    /// Every follower has too much to take already.
    #[error("all followers have too much to take already")]
    Busy,
    /// The network is shutting down.
    #[error("the network is shutting down")]
    ShuttingDown,
}

/// How gossipsub is to work, mending its meshes this often.
fn config(heart: Duration) -> Result<Config, ConfigBuilderError> {
    ConfigBuilder::default()
        // Messages say nothing of who made or sent them, but what is sealed in them.
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(TopicKey::MAX_MESSAGE + ENVELOPE)
        .mesh_n(MESH)
        .mesh_n_low(MESH_LOW)
        .mesh_n_high(MESH_HIGH)
        .mesh_outbound_min(0)
        .flood_publish(false)
        .gossip_lazy(LAZY)
        .gossip_factor(LAZY_SHARE)
        .retain_scores(MESH / 2)
        .opportunistic_graft_ticks(RENEWAL_BEATS)
        .opportunistic_graft_peers(1)
        .history_length(KEPT_BEATS)
        .history_gossip(TOLD_BEATS)
        .duplicate_cache_time(REMEMBERED)
        .publish_queue_duration(STALE)
        .forward_queue_duration(STALE)
        .prune_backoff(heart * BACKOFF_BEATS)
        .unsubscribe_backoff(heart * BACKOFF_BEATS)
        .connection_handler_queue_len(SEND_QUEUE)
        .heartbeat_interval(heart)
        .heartbeat_initial_delay(Duration::ZERO)
        .build()
}

/// What is sent twice is the same to the byte: whoever changes one, breaks its signature.
fn message_id(message: &Message) -> MessageId {
    MessageId::new(&Sha256::digest(&message.data)[..ID])
}

/// Peers are judged by what no honest one does: it checks what it passes on, asks for what it was told of, and does not press
/// itself upon those who turned it away. Addresses are no sign, since many come through one relay.
fn scores() -> (PeerScoreParams, PeerScoreThresholds) {
    let params = PeerScoreParams {
        app_specific_weight: SCORE_WEIGHT,
        ip_colocation_factor_weight: 0.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: score_parameter_decay(Duration::from_secs(10 * 60)),
        retain_score: PUNISHED,
        ..PeerScoreParams::default()
    };
    let thresholds = PeerScoreThresholds {
        opportunistic_graft_threshold: 0.5,
        ..PeerScoreThresholds::default()
    };
    (params, thresholds)
}

/// Who brings news first is kept when there are too many.
fn topic_scores() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 1.0,
        first_message_deliveries_decay: score_parameter_decay(Duration::from_secs(10 * 60)),
        first_message_deliveries_cap: 10.0,
        // Who is silent may have nothing to say.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // Forgers are shut out at once.
        invalid_message_deliveries_weight: 0.0,
        ..TopicScoreParams::default()
    }
}
