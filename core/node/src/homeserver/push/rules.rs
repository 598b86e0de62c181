//! Push rules as users change them. They are kept as account data, so that `/sync` tells of every change.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use kith_store::{ReadTxn, WriteTxn};
use ruma::{
    UserId,
    api::client::push::PushRule,
    events::push_rules::PushRulesEventContent,
    push::{Action, InsertPushRuleError, NewPushRule, PushCondition, RemovePushRuleError, RuleKind, Ruleset},
};

use super::Push;
use crate::{Error, homeserver::Session};

/// The type under which the rules stand.
const PUSH_RULES: &str = "m.push_rules";
/// The largest rule set, in bytes of JSON; every event is held against it.
const LARGEST: usize = 64 * 1024;
/// Parsed rule sets remembered.
const REMEMBERED: usize = 64;

/// A rule set ready for evaluation.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) ruleset: Ruleset,
    /// Whether a rule of the user's own asks what the sender may notify of.
    pub(super) asks_power_levels: bool,
    /// Whether a rule asks for the user's name in the room.
    pub(super) asks_display_name: bool,
}

/// Rule sets by the hash of their JSON, so that none is ever out of date.
#[derive(Default)]
pub(super) struct ParsedRules {
    parsed: Mutex<HashMap<blake3::Hash, Arc<Rules>>>,
}

impl ParsedRules {
    /// The rules of a user of this node.
    pub(super) fn rules(&self, txn: &ReadTxn<'_>, user_id: &UserId) -> Result<Arc<Rules>, Error> {
        let stored = txn.account_data(user_id, None, PUSH_RULES)?;
        let json = stored.as_ref().map_or("", |content| content.get());
        // The default rules name the user, who must therefore be part of what is hashed.
        let mut hasher = blake3::Hasher::new();
        hasher.update(user_id.as_bytes()).update(b"\0").update(json.as_bytes());
        let hash = hasher.finalize();
        if let Some(rules) = self.lock().get(&hash) {
            return Ok(Arc::clone(rules));
        }
        let rules = Arc::new(prepare(load(txn, user_id)?));
        let mut parsed = self.lock();
        if parsed.len() >= REMEMBERED {
            parsed.clear();
        }
        parsed.insert(hash, Arc::clone(&rules));
        Ok(rules)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<blake3::Hash, Arc<Rules>>> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepare(ruleset: Ruleset) -> Rules {
    let conditions = || {
        let conditional = ruleset.override_.iter().chain(&ruleset.underride);
        conditional.flat_map(|rule| rule.conditions.iter().map(|condition| (rule.default, condition)))
    };
    let asks_power_levels = conditions()
        .any(|(default, condition)| !default && matches!(condition, PushCondition::SenderNotificationPermission(_)));
    #[allow(deprecated)]
    let asks_display_name = conditions().any(|(_, condition)| matches!(condition, PushCondition::ContainsDisplayName));
    Rules {
        asks_power_levels,
        asks_display_name,
        ruleset,
    }
}

/// Gives a new account the rules that the specification predefines, so that its first `/sync` tells them.
pub(in crate::homeserver) fn keep_default_rules(txn: &WriteTxn<'_>, user_id: &UserId) -> Result<(), Error> {
    save(txn, user_id, Ruleset::server_default(user_id))
}

/// A user's rules, with whatever the predefined ones have become since they were saved.
fn load(txn: &ReadTxn<'_>, user_id: &UserId) -> Result<Ruleset, Error> {
    let predefined = Ruleset::server_default(user_id);
    let Some(content) = txn.account_data(user_id, None, PUSH_RULES)? else {
        return Ok(predefined);
    };
    let content: PushRulesEventContent = serde_json::from_str(content.get())
        .map_err(|error| Error::Internal("stored push rules do not parse", Some(Box::new(error))))?;
    let mut ruleset = content.global;
    ruleset.update_with_server_default(predefined);
    Ok(ruleset)
}

fn save(txn: &WriteTxn<'_>, user_id: &UserId, ruleset: Ruleset) -> Result<(), Error> {
    let content = serde_json::to_string(&PushRulesEventContent::new(ruleset))
        .map_err(|error| Error::Internal("push rules did not serialise", Some(Box::new(error))))?;
    if content.len() > LARGEST {
        return Err(Error::invalid_param(format!("push rules have at most {LARGEST} bytes")));
    }
    txn.set_account_data(user_id, None, PUSH_RULES, &content)?;
    Ok(())
}

impl Push {
    /// All rules of the user.
    pub async fn rules(&self, session: &Session) -> Result<Ruleset, Error> {
        let user_id = session.user_id.clone();
        self.ctx.store.read(move |txn| load(txn, &user_id)).await
    }

    /// One rule; `M_NOT_FOUND` when there is none.
    pub async fn rule(&self, session: &Session, kind: RuleKind, rule_id: &str) -> Result<PushRule, Error> {
        let ruleset = self.rules(session).await?;
        ruleset.get(kind, rule_id).map(PushRule::from).ok_or_else(no_such_rule)
    }

    /// Adds a rule of the user's own, or changes and moves it.
    pub async fn set_rule(
        &self,
        session: &Session,
        rule: NewPushRule,
        before: Option<String>,
        after: Option<String>,
    ) -> Result<(), Error> {
        self.change(session, move |ruleset| {
            insert(ruleset, rule, before.as_deref(), after.as_deref()).map_err(not_inserted)
        })
        .await
    }

    /// Removes a rule of the user's own.
    pub async fn delete_rule(&self, session: &Session, kind: RuleKind, rule_id: String) -> Result<(), Error> {
        self.change(session, move |ruleset| {
            ruleset.remove(kind, &rule_id).map_err(|error| match error {
                RemovePushRuleError::NotFound => no_such_rule(),
                _ => Error::invalid_param("predefined rules cannot be removed, only disabled"),
            })
        })
        .await
    }

    /// Turns a rule on or off.
    pub async fn enable_rule(
        &self,
        session: &Session,
        kind: RuleKind,
        rule_id: String,
        enabled: bool,
    ) -> Result<(), Error> {
        self.change(session, move |ruleset| {
            let done = ruleset.set_enabled(kind, &rule_id, enabled);
            done.map_err(|_| no_such_rule())
        })
        .await
    }

    /// Sets what a rule does.
    pub async fn set_rule_actions(
        &self,
        session: &Session,
        kind: RuleKind,
        rule_id: String,
        actions: Vec<Action>,
    ) -> Result<(), Error> {
        self.change(session, move |ruleset| {
            let done = ruleset.set_actions(kind, &rule_id, actions);
            done.map_err(|_| no_such_rule())
        })
        .await
    }

    async fn change(
        &self,
        session: &Session,
        change: impl FnOnce(&mut Ruleset) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let user_id = session.user_id.clone();
        self.ctx
            .store
            .write(move |txn| {
                let mut ruleset = load(txn, &user_id)?;
                change(&mut ruleset)?;
                save(txn, &user_id, ruleset)
            })
            .await
    }
}

/// Inserts a rule. One that moves is taken out first: ruma would look for its new place among the rules with it, where
/// there is none behind the last one.
fn insert(
    ruleset: &mut Ruleset,
    rule: NewPushRule,
    before: Option<&str>,
    after: Option<&str>,
) -> Result<(), InsertPushRuleError> {
    let (kind, rule_id) = (rule.kind(), rule.rule_id().to_owned());
    let enabled = ruleset.get(kind.clone(), &rule_id).map(|old| old.enabled());
    if enabled.is_some() && (before.is_some() || after.is_some()) && ruleset.remove(kind.clone(), &rule_id).is_err() {
        return Err(InsertPushRuleError::ServerDefaultRuleId);
    }
    ruleset.insert(rule, after, before)?;
    if let Some(enabled) = enabled {
        // The rule was inserted a moment ago.
        let _ = ruleset.set_enabled(kind, &rule_id, enabled);
    }
    Ok(())
}

fn not_inserted(error: InsertPushRuleError) -> Error {
    match error {
        InsertPushRuleError::UnknownRuleId => Error::not_found(error.to_string()),
        _ => Error::invalid_param(error.to_string()),
    }
}

fn no_such_rule() -> Error {
    Error::not_found("there is no such push rule")
}
