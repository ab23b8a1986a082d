//! The workload's environment: what the host named, then secrets, then defaults for what is missing.

use crate::failure::{Failure, Result};
use crate::user::Account;
use firegopher_protocol::{DEFAULT_PATH, RunConfig};
use std::ffi::CString;

/// Variables in order, each name once. Not `Debug`: it holds secrets.
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// Later settings replace earlier ones of the same name; secrets replace plain ones.
    pub fn new(config: &RunConfig, account: &Account) -> Environment {
        let mut environment = Environment(Vec::with_capacity(config.env.len() + config.secrets.len() + 4));
        for (name, value) in config.env.iter().chain(&config.secrets) {
            match environment.0.iter_mut().find(|(n, _)| n == name) {
                Some((_, old)) => old.clone_from(value),
                None => environment.0.push((name.clone(), value.clone())),
            }
        }
        let defaults = [
            ("PATH", DEFAULT_PATH),
            ("HOME", &account.home),
            ("USER", account.name.as_deref().unwrap_or("")),
            // Output goes into pipes: no colours, no cursor movements.
            ("TERM", "dumb"),
        ];
        for (name, value) in defaults {
            if !value.is_empty() && environment.get(name).is_none() {
                environment.0.push((name.to_owned(), value.to_owned()));
            }
        }
        environment
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// `NAME=value` for execve. Errors name the variable, never its value.
    pub fn to_c(&self) -> Result<Vec<CString>> {
        self.0
            .iter()
            .map(|(name, value)| {
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(Failure::new(format!("{name:?} is no name for an environment variable")));
                }
                CString::new(format!("{name}={value}"))
                    .map_err(|_| Failure::new(format!("the environment variable {name} holds a NUL byte")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: Option<&str>) -> Account {
        Account {
            name: name.map(str::to_owned),
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            home: "/home/ann".into(),
            created: false,
        }
    }

    fn built(env: &[(&str, &str)], secrets: &[(&str, &str)]) -> Environment {
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut config = crate::boot::tests::config();
        config.env = pairs(env);
        config.secrets = pairs(secrets);
        Environment::new(&config, &account(Some("ann")))
    }

    #[test]
    fn defaults_fill_only_what_is_missing() {
        let env = built(&[("HOME", "/elsewhere"), ("A", "1")], &[]);
        let text: Vec<_> = env.to_c().unwrap().into_iter().map(|c| c.into_string().unwrap()).collect();
        assert_eq!(
            text,
            ["HOME=/elsewhere", "A=1", &format!("PATH={DEFAULT_PATH}"), "USER=ann", "TERM=dumb"]
        );
    }

    #[test]
    fn the_last_setting_of_a_name_wins_and_keeps_its_place() {
        let env = built(&[("A", "1"), ("B", "2"), ("A", "3")], &[("B", "secret")]);
        assert_eq!((env.get("A"), env.get("B")), (Some("3"), Some("secret")));
        assert_eq!(env.0[0].0, "A");
    }

    #[test]
    fn a_user_without_a_name_gets_no_user_variable() {
        let env = Environment::new(&crate::boot::tests::config(), &account(None));
        assert_eq!(env.get("USER"), None);
    }

    #[test]
    fn bad_variables_are_errors_that_hide_values() {
        for (name, value) in [("A=B", "hunter2"), ("", "hunter2"), ("A", "hunter2\0"), ("A\0", "hunter2")] {
            let error = built(&[], &[(name, value)]).to_c().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_value_may_hold_equals_signs_or_nothing() {
        let env = built(&[("A", "x=y=z"), ("B", "")], &[]);
        let text = env.to_c().unwrap();
        assert_eq!((text[0].to_str().unwrap(), text[1].to_str().unwrap()), ("A=x=y=z", "B="));
    }
}
