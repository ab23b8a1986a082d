//! Logins that `docker login`, `podman login` or `skopeo login` left on this host. Secrets stay in here and in the
//! requests that carry them: no error and no `Debug` shows one.

use super::reference::Place;
use crate::error::{Error, Result};
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};

/// Far more than logins for every registry there is.
const LONGEST_FILE: u64 = 1 << 20;

/// How somebody proves who they are.
#[derive(Clone)]
pub(super) enum Login {
    Password {
        user: String,
        password: String,
    },
    /// What registries with a single sign-on hand out in place of a password.
    Identity(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(…)")
    }
}

/// The files that may hold logins, the first to be asked first.
#[derive(Debug, Clone, Default)]
pub(super) struct Logins {
    files: Vec<PathBuf>,
}

impl Logins {
    /// The files of this host's user: REGISTRY_AUTH_FILE alone if it is set (containers-auth.json(5)), else podman's
    /// and then Docker's.
    pub fn of_user() -> Self {
        let dir = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = dir("REGISTRY_AUTH_FILE") {
            return Logins { files: vec![file] };
        }
        let config = dir("XDG_CONFIG_HOME").or_else(|| dir("HOME").map(|home| home.join(".config")));
        let docker = dir("DOCKER_CONFIG").or_else(|| dir("HOME").map(|home| home.join(".docker")));
        let files = [
            dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
            docker.map(|dir| dir.join("config.json")),
        ];
        Logins { files: files.into_iter().flatten().collect() }
    }

    #[cfg(test)]
    pub fn of_files(files: Vec<PathBuf>) -> Self {
        Logins { files }
    }

    /// The login for an image, if there is one. Credential helpers that a file names are asked.
    pub fn find(&self, place: &Place) -> Result<Option<Login>> {
        for file in &self.files {
            let Some(bytes) = read(file)? else { continue };
            for name in place.login_names() {
                match get_credential_from_reader(Cursor::new(&bytes), &name) {
                    Ok(DockerCredential::UsernamePassword(user, password)) => {
                        return Ok(Some(Login::Password { user, password }));
                    }
                    Ok(DockerCredential::IdentityToken(token)) => return Ok(Some(Login::Identity(token))),
                    Err(error) => unusable(file, &name, &error)?,
                }
            }
        }
        Ok(None)
    }
}

fn read(file: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |why: String| {
        Error::failed("oci.login-file", format!("cannot read the logins in {}{why}", file.display()))
            .help("mend the file, or log in again")
    };
    match fs_err::metadata(file) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Ok(meta) if !meta.is_file() || meta.len() > LONGEST_FILE => {
            return Err(failed(": it is no regular file of at most 1 MiB".to_owned()));
        }
        _ => {}
    }
    fs_err::read(file).map(Some).map_err(|e| failed(String::new()).because(e))
}

/// No login under this name is no error. The crate's own texts may quote what a helper printed: not shown.
fn unusable(file: &Path, name: &str, error: &CredentialRetrievalError) -> Result<()> {
    use CredentialRetrievalError as E;
    let why = match error {
        E::NoCredentialConfigured | E::ConfigNotFound => return Ok(()),
        // How docker-credential-helpers say so; on stdout, with status 1.
        E::HelperFailure { stdout, .. } if stdout.contains("credentials not found") => return Ok(()),
        E::HelperFailure { helper, .. } => format!("the helper {helper} failed"),
        E::HelperCommunicationError => "the credential helper that it names could not be run".to_owned(),
        E::MalformedHelperResponse => "the credential helper that it names answered nonsense".to_owned(),
        E::CredentialDecodingError => format!("the login for {name} is damaged"),
        E::CredentialMismatchError => format!("the login for {name} contradicts itself"),
        E::ConfigReadError => "it is not the JSON of a login file".to_owned(),
    };
    Err(Error::failed("oci.login-file", format!("cannot use the logins in {}: {why}", file.display()))
        .help("mend the file, or log in again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, image: &str) -> Result<Option<(String, String)>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        fs_err::write(&file, json).unwrap();
        let logins = Logins::of_files(vec![dir.path().join("absent"), file]);
        let found = logins.find(&Place::parse(image).unwrap())?;
        Ok(found.map(|login| match login {
            Login::Password { user, password } => (user, password),
            Login::Identity(token) => (String::new(), token),
        }))
    }

    #[test]
    fn the_most_specific_login_is_taken() {
        // "general:g" and "special:s".
        let json = r#"{"auths":{"reg.example.org":{"auth":"Z2VuZXJhbDpn"},"reg.example.org/a":{"auth":"c3BlY2lhbDpz"}}}"#;
        let named = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(find(json, "reg.example.org/a/b").unwrap(), named("special", "s"));
        assert_eq!(find(json, "reg.example.org/c").unwrap(), named("general", "g"));
        assert_eq!(find(json, "other.example.org/c").unwrap(), None);
    }

    #[test]
    fn what_docker_login_writes_for_its_hub_is_found() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"Z2VuZXJhbDpn"}}}"#;
        assert_eq!(find(json, "nginx").unwrap(), Some(("general".into(), "g".into())));
        let json = r#"{"auths":{"reg.example.org":{"identitytoken":"t0"}}}"#;
        assert_eq!(find(json, "reg.example.org/a").unwrap(), Some((String::new(), "t0".into())));
    }

    #[test]
    fn a_damaged_file_is_named_and_its_secrets_are_not() {
        for json in [
            r#"{"auths":{"reg.example.org":{"auth":"c2VjcmV0"}}}"#,
            "{\"auths\": s3cret",
            r#"{"credsStore":"no-such-helper"}"#,
        ] {
            let error = find(json, "reg.example.org/a").unwrap_err();
            assert_eq!(error.code(), "oci.login-file");
            let text = format!("{error} {error:?}");
            assert!(
                text.contains("auth.json") && !text.contains("s3cret") && !text.contains("c2VjcmV0"),
                "{text}"
            );
        }
        assert_eq!(format!("{:?}", Login::Identity("s3cret".into())), "Login(…)");
    }
}
