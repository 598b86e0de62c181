//! Spaces: rooms that list other rooms. Walks down from one, through rooms held here and rooms that other servers tell of.
//! What others tell is shown and not kept.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use kith_store::ReadTxn;
use ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId,
    api::{
        client::space::{SpaceHierarchyRoomsChunk, get_hierarchy},
        federation::space::{SpaceHierarchyParentSummary, get_hierarchy as federation},
    },
    events::{StateEventType, space::child::HierarchySpaceChildEvent},
    room::{RoomSummary, RoomType},
    serde::Raw,
};
use serde_json::{json, value::RawValue};

use super::{
    Rooms,
    summary::{Asker, told_to},
};
use crate::Error;

/// Rooms on one page at the most.
const MAX_PAGE: usize = 50;
/// Rooms that other servers are asked about for one page.
const MAX_ASKED: usize = 20;
/// How deep a walk goes if the client does not say.
const DEPTH: u64 = 3;
/// The deepest that a walk goes.
const MAX_DEPTH: u64 = 20;
/// Rooms found on one walk at the most; what is beyond them is not shown.
const MAX_FOUND: usize = 1_000;
/// Children that another server is told of, and believed of.
const MAX_CHILDREN: usize = 100;
/// Walks that clients may continue, of all users together; the oldest make room.
const MAX_WALKS: usize = 8;
/// The largest summary, in bytes of JSON, that is remembered until the walk gets to its room; of others it asks anew.
const MAX_TOLD_BYTES: usize = 4 * 1024;

/// Walks that have not come to their end, by the token that continues them.
#[derive(Default)]
pub(super) struct Walks(Mutex<VecDeque<(String, Walk)>>);

/// A walk under way, depth first.
#[derive(Clone)]
struct Walk {
    user: OwnedUserId,
    root: OwnedRoomId,
    suggested_only: bool,
    max_depth: u64,
    /// What to look at next, last first.
    open: Vec<Place>,
    found: BTreeSet<OwnedRoomId>,
    /// What another server told of the children of a space; none of those that we may not enter.
    told: HashMap<OwnedRoomId, Option<RoomSummary>>,
}

#[derive(Clone)]
struct Place {
    room: OwnedRoomId,
    via: Vec<OwnedServerName>,
    depth: u64,
}

/// A room on the walk.
struct Seen {
    summary: RoomSummary,
    children: Vec<Child>,
}

/// A room that a space lists.
struct Child {
    event: HierarchySpaceChildEvent,
    raw: Raw<HierarchySpaceChildEvent>,
}

impl Rooms {
    /// A space and what is below it, as far as the user may know of it. 403 `M_FORBIDDEN` if that is nothing.
    ///
    /// Client-server API, `GET hierarchy`.
    pub async fn hierarchy(
        &self,
        user: &UserId,
        request: get_hierarchy::v1::Request,
    ) -> Result<get_hierarchy::v1::Response, Error> {
        let limit = request.limit.map_or(MAX_PAGE, |limit| {
            usize::try_from(u64::from(limit)).unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
        });
        let mut walk = self.walk(user, request)?;
        let mut response = get_hierarchy::v1::Response::new();
        let mut asked = 0;
        while response.rooms.len() < limit && asked < MAX_ASKED {
            let Some(place) = walk.open.pop() else { break };
            let Some(seen) = self.look(&mut walk, &place, &mut asked).await? else {
                if place.depth == 0 {
                    return Err(Error::forbidden("there is no such room, or you may not know of it"));
                }
                continue;
            };
            walk.go_down(&place, &seen.children);
            let children = seen.children.into_iter().map(|child| child.raw).collect();
            response
                .rooms
                .push(SpaceHierarchyRoomsChunk::new(seen.summary, children));
        }
        if !walk.open.is_empty() {
            let token = self.ctx.world.random_token();
            self.walks.keep(token.clone(), walk);
            response.next_batch = Some(token);
        }
        Ok(response)
    }

    /// A new walk, or the one that a token continues.
    fn walk(&self, user: &UserId, request: get_hierarchy::v1::Request) -> Result<Walk, Error> {
        let max_depth = request.max_depth.map(|depth| u64::from(depth).min(MAX_DEPTH));
        let Some(token) = request.from else {
            let root = Place {
                room: request.room_id.clone(),
                via: Vec::new(),
                depth: 0,
            };
            return Ok(Walk {
                user: user.to_owned(),
                root: request.room_id.clone(),
                suggested_only: request.suggested_only,
                max_depth: max_depth.unwrap_or(DEPTH),
                open: vec![root],
                found: BTreeSet::from([request.room_id]),
                told: HashMap::new(),
            });
        };
        let walk = self.walks.get(&token).filter(|walk| walk.user == user);
        let walk = walk.ok_or_else(|| Error::invalid_param("there is no such page any more; begin again"))?;
        if walk.root != request.room_id
            || walk.suggested_only != request.suggested_only
            || max_depth.is_some_and(|depth| depth != walk.max_depth)
        {
            return Err(Error::invalid_param(
                "`from` belongs to another room, `max_depth` or `suggested_only`",
            ));
        }
        Ok(walk)
    }

    /// What the user may know of one room on the way; none if nothing. Counts rooms that others were asked about.
    async fn look(&self, walk: &mut Walk, place: &Place, asked: &mut usize) -> Result<Option<Seen>, Error> {
        let (own, user, room) = (self.ctx.server_name.clone(), walk.user.clone(), place.room.clone());
        let suggested_only = walk.suggested_only;
        let here = self.ctx.store.read(move |txn| {
            if !txn.is_server_joined(&room, &own)? {
                return Ok(None);
            }
            Ok::<_, Error>(Some(seen(txn, &room, Asker::User(&user), suggested_only)?))
        });
        if let Some(seen) = here.await? {
            return Ok(seen);
        }
        match walk.told.remove(&place.room) {
            Some(None) => return Ok(None),
            // Rooms that list no others have been told of in full.
            Some(Some(summary)) if summary.room_type != Some(RoomType::Space) => {
                let may = self.may_see_elsewhere(&walk.user, &summary).await?;
                return Ok(may.then_some(Seen {
                    summary,
                    children: Vec::new(),
                }));
            }
            _ => {}
        }
        *asked += 1;
        let servers = self.ways_in(&walk.user, &place.room, place.via.clone()).await?;
        let Some(told) = self.ask_summary(&place.room, &servers, walk.suggested_only).await else {
            return Ok(None);
        };
        if !self.may_see_elsewhere(&walk.user, &told.room.summary).await? {
            return Ok(None);
        }
        walk.hear(told.children, told.inaccessible_children);
        Ok(Some(Seen {
            children: match told.room.summary.room_type {
                Some(RoomType::Space) => in_order(told.room.children_state, walk.suggested_only),
                _ => Vec::new(),
            },
            summary: told.room.summary,
        }))
    }

    /// A room that this node is in, and the rooms it lists, for another server. 404 `M_NOT_FOUND` if that server may not
    /// know of it.
    ///
    /// Server-server API, `GET hierarchy`.
    pub async fn hierarchy_for(
        &self,
        peer: &ServerName,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<federation::v1::Response, Error> {
        let (own, peer, room) = (self.ctx.server_name.clone(), peer.to_owned(), room.to_owned());
        let read = self.ctx.store.read(move |txn| {
            let unknown = || Error::not_found("there is no such room, or your server may not know of it");
            if !txn.is_server_joined(&room, &own)? {
                return Err(unknown());
            }
            let asker = Asker::Server(&peer);
            let seen = seen(txn, &room, asker, suggested_only)?.ok_or_else(unknown)?;
            let mut children = Vec::new();
            let mut inaccessible = Vec::new();
            let listed = seen.children.iter().take(MAX_CHILDREN);
            for child in listed.map(|child| &child.event.state_key) {
                if !txn.is_server_joined(child, &own)? {
                    continue;
                }
                match told_to(txn, child, asker)? {
                    Some(summary) => children.push(summary),
                    None => inaccessible.push(child.clone()),
                }
            }
            let listed = seen.children.into_iter().take(MAX_CHILDREN).map(|child| child.raw);
            let parent = SpaceHierarchyParentSummary::new(seen.summary, listed.collect());
            let mut response = federation::v1::Response::new(parent);
            response.children = children;
            response.inaccessible_children = inaccessible;
            Ok(response)
        });
        read.await
    }
}

impl Walk {
    /// Notes the children of a room that was reached. The first of them is looked at next.
    fn go_down(&mut self, from: &Place, children: &[Child]) {
        if from.depth >= self.max_depth {
            return;
        }
        let mut places = Vec::new();
        for Child { event, .. } in children {
            if self.found.len() < MAX_FOUND && self.found.insert(event.state_key.clone()) {
                places.push(Place {
                    room: event.state_key.clone(),
                    via: event.content.via.clone(),
                    depth: from.depth + 1,
                });
            }
        }
        self.open.extend(places.into_iter().rev());
    }

    fn hear(&mut self, children: Vec<RoomSummary>, inaccessible: Vec<OwnedRoomId>) {
        let size = |child: &RoomSummary| serde_json::to_string(child).map_or(usize::MAX, |json| json.len());
        let children = children.into_iter().filter(|child| size(child) <= MAX_TOLD_BYTES);
        let children = children.map(|child| (child.room_id.clone(), Some(child)));
        let inaccessible = inaccessible.into_iter().map(|room| (room, None));
        for (room, told) in children.take(MAX_CHILDREN).chain(inaccessible.take(MAX_CHILDREN)) {
            if self.told.len() < MAX_FOUND {
                self.told.entry(room).or_insert(told);
            }
        }
    }
}

impl Walks {
    fn get(&self, token: &str) -> Option<Walk> {
        let walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        walks
            .iter()
            .find(|(held, _)| held == token)
            .map(|(_, walk)| walk.clone())
    }

    fn keep(&self, token: String, walk: Walk) {
        let mut walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if walks.len() >= MAX_WALKS {
            walks.pop_front();
        }
        walks.push_back((token, walk));
    }
}

/// A room held here with what it lists, for somebody who may know of it.
fn seen(txn: &ReadTxn<'_>, room: &RoomId, asker: Asker<'_>, suggested_only: bool) -> Result<Option<Seen>, Error> {
    let Some(summary) = told_to(txn, room, asker)? else {
        return Ok(None);
    };
    let mut children = Vec::new();
    if summary.room_type == Some(RoomType::Space) {
        let broken = |error| Error::Internal("a stored event is no JSON", Some(Box::new(error)));
        for pdu in txn.current_state_events(room, |kind| *kind == StateEventType::SpaceChild)? {
            let content: &RawValue = serde_json::from_str(pdu.content_json()).map_err(broken)?;
            let child = json!({
                "type": StateEventType::SpaceChild,
                "state_key": pdu.state_key(),
                "content": content,
                "sender": pdu.sender(),
                "origin_server_ts": pdu.origin_server_ts(),
            });
            children.push(Raw::new(&child).map_err(broken)?.cast_unchecked());
        }
    }
    Ok(Some(Seen {
        summary,
        children: in_order(children, suggested_only),
    }))
}

/// The children that are well-formed, in the order in which a space shows them. One without `via` is listed no more.
///
/// Client-server API, "Ordering of children within a space".
fn in_order(raw: Vec<Raw<HierarchySpaceChildEvent>>, suggested_only: bool) -> Vec<Child> {
    let parsed = raw.into_iter().filter_map(|raw| {
        let event = raw.deserialize().ok()?;
        Some(Child { event, raw })
    });
    let wanted =
        |child: &Child| !child.event.content.via.is_empty() && (child.event.content.suggested || !suggested_only);
    let mut children: Vec<Child> = parsed.filter(wanted).collect();
    children.sort_by(|one, other| one.event.cmp(&other.event));
    children
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, owned_user_id, room::JoinRuleSummary, uint};

    use super::*;

    /// What strangers tell must not fill the memory.
    #[test]
    fn a_walk_remembers_little_of_what_it_is_told() {
        let mut walk = Walk {
            user: owned_user_id!("@alice:here"),
            root: owned_room_id!("!root:here"),
            suggested_only: false,
            max_depth: DEPTH,
            open: Vec::new(),
            found: BTreeSet::new(),
            told: HashMap::new(),
        };
        let summary = |number: usize, topic: usize| {
            let room = OwnedRoomId::try_from(format!("!{number}:there")).unwrap();
            let mut summary = RoomSummary::new(room, JoinRuleSummary::Public, false, uint!(1), false);
            summary.topic = Some("x".repeat(topic));
            summary
        };
        walk.hear(
            vec![summary(0, 10), summary(1, MAX_TOLD_BYTES), summary(2, 10)],
            Vec::new(),
        );
        assert_eq!(walk.told.len(), 2);
        for round in 1..20 {
            walk.hear(
                (0..1_000).map(|number| summary(round * 1_000 + number, 10)).collect(),
                Vec::new(),
            );
        }
        assert_eq!(walk.told.len(), MAX_FOUND);
    }
}
