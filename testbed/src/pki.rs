//! Keys and certificates from OpenSSL: independent of adit's own, and ready-made where making them is slow.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

/// All kinds of keys an identity can have.
pub const KEY_KINDS: [&str; 8] =
    ["RSA-2048", "RSA-4096", "RSA-8192", "P-256", "P-384", "secp521r1", "Ed25519", "Ed448"];

const RSA_4096: &str = include_str!("../keys/rsa-4096.test.pem");
const RSA_8192: &str = include_str!("../keys/rsa-8192.test.pem");

/// A ready-made private key (PEM) of a kind that takes long to make. Known to all the world: for tests only.
#[must_use]
pub fn ready_key(kind: &str) -> Option<&'static str> {
    match kind {
        "RSA-4096" => Some(RSA_4096),
        "RSA-8192" => Some(RSA_8192),
        _ => None,
    }
}

/// Puts a key that takes long to make where adit finds it.
pub(crate) fn provide_slow_key(dir: &Path, kind: &str) {
    if let Some(key) = ready_key(kind) {
        make_dir(dir);
        write_secret(&dir.join("key.pem"), key);
    }
}

/// Replaces a CA: `ca.pem` and `ca.key` in `dir`.
pub(crate) fn make_ca(dir: &Path, kind: &str) {
    let _ = std::fs::remove_file(dir.join("ca.key"));
    make_key(&dir.join("ca.key"), kind);
    let arguments = ["req", "-x509", "-new", "-sha384", "-days", "3650", "-subj", "/CN=An older CA"];
    let extensions =
        ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
    let mut command = Command::new("openssl");
    command.args(arguments).args(extensions).arg("-key").arg(dir.join("ca.key"));
    openssl(command.arg("-out").arg(dir.join("ca.pem")));
}

/// A CA with OpenSSL, for foreign servers and for certificates that adit must not accept.
#[derive(Debug)]
pub struct TestPki {
    dir: TempDir,
    count: AtomicU32,
}

impl TestPki {
    /// A new CA with this kind of key.
    ///
    /// # Panics
    /// When OpenSSL does not make it.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        make_ca(dir.path(), kind);
        Self { dir, count: AtomicU32::new(0) }
    }

    /// The CA's certificate, PEM.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("ca.pem")).expect("the CA's certificate")
    }

    /// A certificate and its key, PEM; `usage` is `serverAuth` or `clientAuth`.
    ///
    /// # Panics
    /// When OpenSSL does not make it.
    #[must_use]
    pub fn issue(&self, name: &str, usage: &str, kind: &str) -> (String, String) {
        issue_by(self.dir.path(), self.dir.path(), &self.count, name, usage, kind)
    }

    /// The same from the CA in another directory (`ca.pem`, `ca.key`), for instance a gateway's own.
    ///
    /// # Panics
    /// When OpenSSL does not make it.
    #[must_use]
    pub fn issue_from(&self, ca: &Path, name: &str, usage: &str, kind: &str) -> (String, String) {
        issue_by(ca, self.dir.path(), &self.count, name, usage, kind)
    }
}

fn issue_by(
    ca: &Path,
    dir: &Path,
    count: &AtomicU32,
    name: &str,
    usage: &str,
    kind: &str,
) -> (String, String) {
    let number = count.fetch_add(1, Ordering::Relaxed);
    let file = |ending: &str| -> PathBuf { dir.join(format!("{number}.{ending}")) };
    make_key(&file("key"), kind);
    let mut request = Command::new("openssl");
    request.args(["req", "-new", "-subj", &format!("/CN={name}"), "-key"]).arg(file("key"));
    openssl(request.arg("-out").arg(file("csr")));
    let extensions = format!(
        "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyAgreement\nextendedKeyUsage={usage}\n\
         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    );
    std::fs::write(file("ext"), extensions).expect("a file");
    let mut sign = Command::new("openssl");
    sign.args(["x509", "-req", "-sha384", "-days", "30", "-set_serial", &format!("0x10{number:08x}"), "-in"]);
    sign.arg(file("csr")).arg("-CA").arg(ca.join("ca.pem")).arg("-CAkey").arg(ca.join("ca.key"));
    openssl(sign.arg("-extfile").arg(file("ext")).arg("-out").arg(file("pem")));
    let read = |ending: &str| std::fs::read_to_string(file(ending)).expect("what OpenSSL has written");
    (read("pem"), read("key"))
}

fn make_key(path: &Path, kind: &str) {
    if let Some(key) = ready_key(kind) {
        return write_secret(path, key);
    }
    let (algorithm, option) = match kind {
        "P-256" => ("EC", Some("ec_paramgen_curve:P-256".to_owned())),
        "P-384" => ("EC", Some("ec_paramgen_curve:P-384".to_owned())),
        "secp521r1" => ("EC", Some("ec_paramgen_curve:P-521".to_owned())),
        "Ed25519" => ("ED25519", None),
        "Ed448" => ("ED448", None),
        other => match other.strip_prefix("RSA-") {
            Some(bits) => ("RSA", Some(format!("rsa_keygen_bits:{bits}"))),
            None => panic!("{other} is no kind of key"),
        },
    };
    let mut command = Command::new("openssl");
    command.args(["genpkey", "-algorithm", algorithm]);
    if let Some(option) = option {
        command.args(["-pkeyopt", &option]);
    }
    let pem = openssl(&mut command);
    write_secret(path, &pem);
}

fn openssl(command: &mut Command) -> String {
    crate::require("openssl");
    let output = command.output().expect("openssl runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn make_dir(path: &Path) {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).expect("a directory");
}

fn write_secret(path: &Path, text: &str) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a file can be written");
}
