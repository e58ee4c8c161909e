//! Server identities: the tables in the configuration, and the keys behind them.

use adit_api::{AddIdentity, Identity, IdentityList, Problem, Time};
use adit_openvpn::wrap::Digest;
use adit_pki::KeyKind;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{Admin, conflict, internal, invalid, not_found};
use crate::clock;
use crate::config::{self, IdentityConfig, Loaded, WrapKind};

impl Admin {
    /// All identities.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn identities(&self) -> Result<IdentityList, Problem> {
        let loaded = self.loaded();
        let identities =
            loaded.config.identity.iter().map(|identity| self.describe_identity(&loaded, identity));
        Ok(IdentityList { identities: identities.collect::<Result<_, _>>()?, next: None })
    }

    /// Adds an identity to the configuration, makes its keys and puts it in force.
    ///
    /// # Errors
    /// [`Problem`], worded for people; the configuration is as before then.
    pub fn add_identity(&self, request: &AddIdentity) -> Result<Identity, Problem> {
        let kind: KeyKind = request.key.parse().map_err(invalid)?;
        let wrap = WrapKind::named(&request.wrap).ok_or_else(|| {
            invalid(format!("\"{}\" is not one of none, tls-auth, tls-crypt, tls-crypt-v2", request.wrap))
        })?;
        let auth = request.auth.as_deref().map(|name| {
            Digest::named(name)
                .ok_or_else(|| invalid(format!("\"{name}\" is not one of SHA1, SHA256, SHA384, SHA512")))
        });
        let auth = auth.transpose()?;
        if self.loaded().config.identity.iter().any(|identity| identity.name == request.name) {
            return Err(conflict(format!("there is an identity named {} already", request.name)));
        }
        self.edit(|document| {
            let mut table = Table::new();
            table.insert("name", value(&request.name));
            table.insert("key", value(kind.to_string()));
            table.insert("wrap", value(wrap.name()));
            if let Some(auth) = auth {
                table.insert("auth", value(auth.name()));
            }
            if let Some(port) = request.port {
                table.insert("port", value(i64::from(port)));
            }
            let identities = document.entry("identity").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
            if let Some(identities) = identities.as_array_of_tables_mut() {
                identities.push(table);
            }
        })?;
        let loaded = self.loaded();
        let added = loaded.config.identity.iter().find(|identity| identity.name == request.name);
        self.describe_identity(&loaded, added.ok_or_else(|| internal("the identity vanished"))?)
    }

    /// Takes an identity out of the configuration, deletes its keys and ends its sessions: profiles made for it are of
    /// no use any more.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub async fn remove_identity(&self, name: &str) -> Result<(), Problem> {
        let loaded = self.loaded();
        if !loaded.config.identity.iter().any(|identity| identity.name == name) {
            return Err(not_found("identity", name));
        }
        if loaded.config.identity.len() == 1 {
            return Err(conflict("this is the last identity; nobody could connect without one"));
        }
        self.edit(|document| {
            if let Some(identities) = document.get_mut("identity").and_then(Item::as_array_of_tables_mut) {
                identities.retain(|table| table.get("name").and_then(Item::as_str) != Some(name));
            }
        })?;
        self.keyring().remove_identity(name).map_err(internal)?;
        self.cut_identities(&[name.to_owned()]).await.map(drop)
    }

    /// Gives an identity a new key and certificate. Profiles stay good: they trust the CA.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn rotate_identity(&self, name: &str) -> Result<Identity, Problem> {
        let loaded = self.loaded();
        let identity = loaded.config.identity.iter().find(|identity| identity.name == name);
        let identity = identity.ok_or_else(|| not_found("identity", name))?;
        self.keyring().rotate_identity(name).map_err(internal)?;
        self.use_identities(&loaded).map_err(internal)?;
        self.describe_identity(&loaded, identity)
    }

    fn describe_identity(&self, loaded: &Loaded, identity: &IdentityConfig) -> Result<Identity, Problem> {
        let config = &loaded.config;
        let keys = self
            .keyring()
            .identity(identity, &config.name, config.ca.server_lifetime, clock::unix())
            .map_err(internal)?;
        Ok(Identity {
            name: identity.name.clone(),
            key: identity.key.to_string(),
            wrap: identity.wrap.name().to_owned(),
            auth: (identity.wrap == WrapKind::TlsAuth).then(|| identity.digest().name().to_owned()),
            port: identity.port,
            certificate_serial: keys.certificate.serial().to_string(),
            certificate_expires: Time::from_millis(keys.certificate.not_after().as_secs() as i64 * 1000),
        })
    }

    /// Changes the configuration's text, keeping its comments, and puts the identities in force. A change that
    /// makes no sense is not written.
    fn edit(&self, change: impl FnOnce(&mut DocumentMut)) -> Result<(), Problem> {
        let _one_at_a_time = self.files();
        let loaded = self.loaded();
        let before = std::fs::read_to_string(&loaded.path)
            .map_err(|error| internal(format!("cannot read {}: {error}", loaded.path.display())))?;
        let mut document: DocumentMut = before.parse().map_err(invalid)?;
        change(&mut document);
        let after = document.to_string();
        let written = config::parse(&after, &loaded.path).map_err(invalid)?;
        // What else has changed in the file is for the next reload to find.
        let mut config = loaded.config.clone();
        config.identity = written.identity;
        let next = Loaded { path: loaded.path.clone(), config };
        self.use_identities(&next).map_err(invalid)?;
        super::reload::replace_file(&loaded.path, &after).map_err(internal)?;
        *self.loaded.write().unwrap_or_else(std::sync::PoisonError::into_inner) = std::sync::Arc::new(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::InitOptions;

    #[tokio::test]
    async fn what_else_has_changed_in_the_file_is_left_to_the_next_reload() {
        let directory = tempfile::tempdir().unwrap();
        let options = InitOptions { public: vec!["vpn.example.org".into()], ..InitOptions::default() };
        crate::init::init(directory.path(), options).unwrap();
        let path = directory.path().join("adit.toml");
        let admin = Admin::open(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("mtu = 1500", "mtu = 1400").replace("# dns", "dns")).unwrap();

        let request = serde_json::json!({ "name": "ed", "key": "Ed25519", "wrap": "tls-crypt" });
        admin.add_identity(&serde_json::from_value(request).unwrap()).unwrap();

        let report = admin.reload(true).await.unwrap();
        assert_eq!(report.needs_restart, ["[tunnel] mtu has changed"]);
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains("mtu = 1400") && written.contains("name = \"ed\""), "{written}");
        admin.remove_identity("ed").await.unwrap();
        assert!(!admin.loaded().config.identity.iter().any(|identity| identity.name == "ed"));
    }
}
