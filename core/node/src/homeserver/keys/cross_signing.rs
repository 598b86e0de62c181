//! A user publishes cross-signing keys: freely the first time, later only with proof of who they are. It trusts no key
//! more than another; clients do.

use kith_engine::encryption::PublishedKey;
use kith_store::{CrossSigningRow, ReadTxn, WriteTxn};
use ruma::{
    DeviceId, OwnedServerName, UserId,
    api::error::ErrorKind,
    encryption::{CrossSigningKey, KeyUsage},
    exports::http::StatusCode,
    serde::Raw,
};

use super::{Keys, announce, key_refused, show};
use crate::{
    Error,
    homeserver::{Context, Session},
};

/// Cross-signing keys to publish.
#[derive(Default)]
pub struct CrossSigningUpload {
    /// Signs the other two.
    pub master: Option<Raw<CrossSigningKey>>,
    /// Signs the user's devices.
    pub self_signing: Option<Raw<CrossSigningKey>>,
    /// Signs other users' master keys.
    pub user_signing: Option<Raw<CrossSigningKey>>,
}

/// A well-formed cross-signing key with its usage and public key.
struct Checked {
    usage: KeyUsage,
    key: PublishedKey,
    row: CrossSigningRow,
}

/// An upload whose keys are well formed.
pub struct CheckedCrossSigning(Vec<Checked>);

impl CrossSigningUpload {
    /// Parses the keys of a user.
    pub fn check(self, user: &UserId) -> Result<CheckedCrossSigning, Error> {
        let keys = [
            (KeyUsage::Master, self.master),
            (KeyUsage::SelfSigning, self.self_signing),
            (KeyUsage::UserSigning, self.user_signing),
        ];
        let given = keys.into_iter().filter_map(|(usage, raw)| Some((usage, raw?)));
        let checked = given.map(|(usage, raw)| {
            let key = PublishedKey::parse(raw.json().get()).map_err(key_refused)?;
            let public = key.check_cross_signing(user, &usage).map_err(key_refused)?.to_owned();
            let row = CrossSigningRow {
                public,
                key: key.to_json().map_err(key_refused)?,
            };
            Ok::<_, Error>(Checked { usage, key, row })
        });
        Ok(CheckedCrossSigning(checked.collect::<Result<_, _>>()?))
    }
}

impl Keys {
    /// Whether the user must prove who they are before this upload.
    ///
    /// Client-server API, `/keys/device_signing/upload`: not while there is no master key, and not when nothing is new.
    pub async fn cross_signing_needs_proof(&self, user: &UserId, upload: &CheckedCrossSigning) -> Result<bool, Error> {
        let publics = upload.publics();
        let user = user.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                let known = Known::read(txn, &user)?;
                Ok(known.has_master() && !known.holds(&publics))
            })
            .await
    }

    /// Publishes cross-signing keys. `proven` says that the user has just proven who they are; without it nothing is
    /// replaced.
    ///
    /// Refuses with `M_MISSING_PARAM` without any master key, `M_INVALID_SIGNATURE` keys that it has not signed, and
    /// `M_FORBIDDEN` a key that has the id of a device.
    pub async fn upload_cross_signing(
        &self,
        session: &Session,
        upload: CheckedCrossSigning,
        proven: bool,
    ) -> Result<(), Error> {
        let (ctx, user) = (self.ctx.clone(), session.user_id.clone());
        let servers = self
            .ctx
            .store
            .write(move |txn| upload.save(txn, &ctx, &user, proven))
            .await?;
        self.outbox.wake(servers);
        Ok(())
    }
}

impl CheckedCrossSigning {
    fn publics(&self) -> Vec<(KeyUsage, String)> {
        let keys = self.0.iter();
        keys.map(|key| (key.usage.clone(), key.row.public.clone())).collect()
    }

    fn save(
        &self,
        txn: &WriteTxn<'_>,
        ctx: &Context,
        user: &UserId,
        proven: bool,
    ) -> Result<Vec<OwnedServerName>, Error> {
        let known = Known::read(txn, user)?;
        if known.holds(&self.publics()) {
            return Ok(Vec::new());
        }
        if known.has_master() && !proven {
            return Err(Error::forbidden("the keys changed meanwhile; try again"));
        }
        self.check_signed(user, &known)?;
        for checked in &self.0 {
            if txn.device(user, <&DeviceId>::from(&*checked.row.public))?.is_some() {
                return Err(Error::forbidden("the key has the id of a device"));
            }
        }
        let new = |checked: &&Checked| known.public(&checked.usage) != Some(&checked.row.public);
        let new: Vec<&Checked> = self.0.iter().filter(new).collect();
        for checked in &new {
            known.retire(txn, user, &checked.usage)?;
            txn.set_cross_signing_key(user, &checked.usage, &checked.row)?;
        }
        if new.iter().any(|checked| checked.usage == KeyUsage::Master) {
            // Keys that the old master key signed prove nothing under the new one.
            for usage in [KeyUsage::SelfSigning, KeyUsage::UserSigning] {
                if !self.0.iter().any(|checked| checked.usage == usage) {
                    known.retire(txn, user, &usage)?;
                    txn.delete_cross_signing_key(user, &usage)?;
                }
            }
        }
        if new.iter().all(|checked| checked.usage == KeyUsage::UserSigning) {
            // Nobody else ever sees it.
            txn.note_device_list_change_for(user, user)?;
            return Ok(Vec::new());
        }
        announce::cross_signing_changed(txn, ctx, user)
    }

    /// Both lesser keys must be signed by the master key that is uploaded with them, or that was before.
    fn check_signed(&self, user: &UserId, known: &Known) -> Result<(), Error> {
        let uploaded = self.0.iter().find(|checked| checked.usage == KeyUsage::Master);
        let master = match uploaded {
            Some(checked) => &checked.row.public,
            None => known.public(&KeyUsage::Master).ok_or_else(|| {
                let message = "there is no master key to sign these keys";
                Error::refused(StatusCode::BAD_REQUEST, ErrorKind::MissingParam, message)
            })?,
        };
        for checked in self.0.iter().filter(|checked| checked.usage != KeyUsage::Master) {
            checked.key.verify(user, master, master).map_err(key_refused)?;
        }
        Ok(())
    }
}

/// A user's published cross-signing keys.
struct Known(Vec<(KeyUsage, CrossSigningRow)>);

impl Known {
    fn read(txn: &ReadTxn<'_>, user: &UserId) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for usage in [KeyUsage::Master, KeyUsage::SelfSigning, KeyUsage::UserSigning] {
            if let Some(row) = txn.cross_signing_key(user, &usage)? {
                PublishedKey::parse(&row.key).map_err(show::corrupt)?;
                keys.push((usage, row));
            }
        }
        Ok(Self(keys))
    }

    fn public(&self, usage: &KeyUsage) -> Option<&String> {
        let found = self.0.iter().find(|(known, _)| known == usage);
        found.map(|(_, row)| &row.public)
    }

    fn has_master(&self) -> bool {
        self.public(&KeyUsage::Master).is_some()
    }

    /// Whether all these keys are published already, the master key among them.
    fn holds(&self, keys: &[(KeyUsage, String)]) -> bool {
        let held = |(usage, public): &(KeyUsage, String)| self.public(usage) == Some(public);
        self.has_master() && keys.iter().all(held)
    }

    /// Drops the signatures on a key that goes, and those that it made.
    fn retire(&self, txn: &WriteTxn<'_>, user: &UserId, usage: &KeyUsage) -> Result<(), Error> {
        if let Some(public) = self.public(usage) {
            txn.delete_signatures_on(user, public)?;
            txn.delete_signatures_by(user, &format!("ed25519:{public}"))?;
        }
        Ok(())
    }
}
