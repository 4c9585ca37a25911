//! Access: who may do what.
//!
//! Rule: what no grant allows is refused, and a refusal names the role that is needed. An operation and a
//! caller decide alone; nothing here asks the system.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::selection;

/// What a caller may do. Every role may do what a viewer may; an admin may do all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look, and check endpoints.
    Viewer,
    /// Also run migrations: sync, pause, resume, verify, cutover, abort, rollback, limits.
    Operator,
    /// Also apply and delete plans without programs, and cancel migrations.
    Planner,
    /// All, also plans with programs, and grants.
    Admin,
}

/// What an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    View,
    Operate,
    Plan,
    Administer,
}

impl Role {
    /// All roles, from the least.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Planner, Self::Admin];

    /// Its name in commands and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Planner => "planner",
            Self::Admin => "admin",
        }
    }

    fn has(self, right: Right) -> bool {
        match right {
            Right::View => true,
            Right::Operate => matches!(self, Self::Operator | Self::Admin),
            Right::Plan => matches!(self, Self::Planner | Self::Admin),
            Right::Administer => self == Self::Admin,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| {
            format!("there is no role `{text}`: the roles are viewer, operator, planner and admin")
        })
    }
}

impl Right {
    /// The least role that has it.
    pub fn role(self) -> Role {
        match self {
            Self::View => Role::Viewer,
            Self::Operate => Role::Operator,
            Self::Plan => Role::Planner,
            Self::Administer => Role::Admin,
        }
    }
}

/// Whom a grant is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A client certificate, by its common name.
    Certificate(String),
    /// A user of the daemon's host who uses the Unix socket.
    User(String),
    /// A group of the daemon's host; its members use the Unix socket.
    Group(String),
}

/// The most characters of a subject's name.
const LONGEST: usize = 128;

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(name) => write!(f, "cert:{name}"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    /// `cert:NAME`, `user:NAME`, `group:NAME`; a name alone is a certificate's.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once(':').unwrap_or(("cert", text));
        let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && c != ',';
        if name.is_empty() || name.chars().count() > LONGEST || !name.chars().all(is_plain) {
            return Err(format!(
                "`{}` is no name: 1 to {LONGEST} characters without spaces and commas",
                name.escape_debug()
            ));
        }
        match kind {
            "cert" => Ok(Self::Certificate(name.to_owned())),
            "user" => Ok(Self::User(name.to_owned())),
            "group" => Ok(Self::Group(name.to_owned())),
            _ => Err(format!(
                "`{}` is no kind of name: write cert:NAME, user:NAME or group:NAME",
                kind.escape_debug()
            )),
        }
    }
}

/// A role that a subject has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub subject: Subject,
    pub role: Role,
    /// Only for plans whose names match one of these patterns (`*`, `?`); for all if empty.
    pub plans: Vec<String>,
    /// Who granted it, and when.
    pub by: String,
    pub at: DateTime<Utc>,
}

/// The caller of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// As the journal names the caller.
    pub name: String,
    pub identity: Identity,
}

/// How a caller is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The daemon itself, its own user, or root: may do all.
    Owner,
    /// A user of the daemon's host, with the groups.
    User { name: String, groups: Vec<String> },
    /// A client certificate's common name.
    Certificate(String),
}

impl Identity {
    fn is(&self, subject: &Subject) -> bool {
        match (self, subject) {
            (Self::User { name, .. }, Subject::User(wanted)) => name == wanted,
            (Self::User { groups, .. }, Subject::Group(wanted)) => groups.contains(wanted),
            (Self::Certificate(name), Subject::Certificate(wanted)) => name == wanted,
            (Self::Owner | Self::User { .. } | Self::Certificate(_), _) => false,
        }
    }

    /// The subject to name in a grant; none for the owner, who needs none.
    pub fn subject(&self) -> Option<Subject> {
        match self {
            Self::Owner => None,
            Self::User { name, .. } => Some(Subject::User(name.clone())),
            Self::Certificate(name) => Some(Subject::Certificate(name.clone())),
        }
    }
}

/// What an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// A plan, or a migration of the plan.
    Plan(&'a str),
    /// Endpoints, and what belongs to no plan.
    Common,
    /// All plans.
    Whole,
}

/// Whether the grants allow `caller` an operation; else why not, and what to do.
pub fn allow(grants: &[Grant], caller: &Caller, right: Right, scope: Scope<'_>) -> Result<(), String> {
    let Some(subject) = caller.identity.subject() else { return Ok(()) };
    let mine: Vec<_> = grants.iter().filter(|grant| caller.identity.is(&grant.subject)).collect();
    let able: Vec<_> = mine.iter().filter(|grant| grant.role.has(right)).collect();
    if able.iter().any(|grant| grant.covers(scope)) {
        return Ok(());
    }
    let role = right.role();
    let ask = format!("an admin can grant it: warmctl access grant {subject} --role {role}");
    Err(match scope {
        _ if mine.is_empty() => format!("{subject} has no role here, and this needs the role {role}; {ask}"),
        _ if able.is_empty() => {
            let has: Vec<_> = mine.iter().map(|grant| grant.role.name()).collect();
            format!("{subject} has the role {}, and this needs the role {role}; {ask}", has.join(", "))
        }
        Scope::Plan(plan) => format!(
            "the role {role} of {subject} is not for the plan {plan}, only for {}; {ask} --plans …",
            patterns(&able)
        ),
        Scope::Common | Scope::Whole => format!(
            "the role {role} of {subject} is only for the plans {}, and this is about all plans; {ask}",
            patterns(&able)
        ),
    })
}

fn patterns(grants: &[&&Grant]) -> String {
    let all: Vec<_> = grants.iter().flat_map(|grant| &grant.plans).map(String::as_str).collect();
    all.join(", ")
}

impl Grant {
    fn covers(&self, scope: Scope<'_>) -> bool {
        self.plans.is_empty()
            || match scope {
                Scope::Plan(plan) => self.plans.iter().any(|pattern| selection::matches(pattern, plan)),
                Scope::Common => true,
                Scope::Whole => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant(subject: &str, role: Role, plans: &[&str]) -> Grant {
        let plans = plans.iter().map(|plan| (*plan).to_owned()).collect();
        let subject = subject.parse().unwrap();
        Grant { subject, role, plans, by: "admin".to_owned(), at: DateTime::UNIX_EPOCH }
    }

    fn caller(identity: Identity) -> Caller {
        Caller { name: "test".to_owned(), identity }
    }

    fn anna() -> Caller {
        let groups = vec!["staff".to_owned(), "ops".to_owned()];
        caller(Identity::User { name: "anna".to_owned(), groups })
    }

    #[test]
    fn unknown_caller_is_refused_with_the_needed_role() {
        for right in [Right::View, Right::Operate, Right::Plan, Right::Administer] {
            let why = allow(&[], &anna(), right, Scope::Common).unwrap_err();
            assert!(why.contains("user:anna has no role"), "{why}");
            assert!(why.contains(&format!("--role {}", right.role())), "{why}");
        }
    }

    #[test]
    fn role_of_a_group_and_of_a_user_add_up() {
        let grants = [grant("group:ops", Role::Operator, &[]), grant("user:anna", Role::Planner, &[])];
        allow(&grants, &anna(), Right::Operate, Scope::Whole).unwrap();
        allow(&grants, &anna(), Right::Plan, Scope::Whole).unwrap();
        let why = allow(&grants, &anna(), Right::Administer, Scope::Whole).unwrap_err();
        assert!(why.contains("has the role operator, planner, and this needs the role admin"), "{why}");
    }

    #[test]
    fn grant_for_some_plans_is_for_these_alone() {
        let grants = [grant("cert:web-team", Role::Operator, &["web-*"])];
        let caller = caller(Identity::Certificate("web-team".to_owned()));
        allow(&grants, &caller, Right::Operate, Scope::Plan("web-1")).unwrap();
        allow(&grants, &caller, Right::View, Scope::Common).unwrap();
        let why = allow(&grants, &caller, Right::View, Scope::Plan("db")).unwrap_err();
        assert!(why.contains("is not for the plan db, only for web-*"), "{why}");
        allow(&grants, &caller, Right::View, Scope::Whole).unwrap_err();
    }

    #[test]
    fn certificate_is_no_user_of_the_same_name() {
        let grants = [grant("user:anna", Role::Admin, &[])];
        let caller = caller(Identity::Certificate("anna".to_owned()));
        allow(&grants, &caller, Right::View, Scope::Common).unwrap_err();
    }

    #[test]
    fn bad_subject_and_role_are_refused_with_the_choices() {
        for bad in ["", "cert:", "robot:r2", "user:a b", "a,b", &"x".repeat(129)] {
            bad.parse::<Subject>().unwrap_err();
        }
        assert_eq!("anna".parse(), Ok(Subject::Certificate("anna".to_owned())));
        assert!("boss".parse::<Role>().unwrap_err().contains("viewer, operator, planner and admin"));
    }

    proptest! {
        /// Without a grant for exactly this caller nothing is allowed but to the owner.
        #[test]
        fn grants_of_others_allow_nothing(
            roles in proptest::collection::vec((0_usize..4, "[a-z]{1,6}", 0_usize..3), 0..20),
            right in 0_usize..4,
        ) {
            let kinds = ["cert", "user", "group"];
            let grants: Vec<_> = roles
                .iter()
                .map(|(role, name, kind)| grant(&format!("{}:x{name}", kinds[*kind]), Role::ALL[*role], &[]))
                .collect();
            let right = [Right::View, Right::Operate, Right::Plan, Right::Administer][right];
            prop_assert!(allow(&grants, &anna(), right, Scope::Common).is_err());
            prop_assert!(allow(&grants, &caller(Identity::Owner), right, Scope::Whole).is_ok());
        }

        #[test]
        fn subject_survives_its_text(kind in 0_usize..3, name in "[a-zA-Zäöü0-9._@:-]{1,20}") {
            let text = format!("{}:{name}", ["cert", "user", "group"][kind]);
            prop_assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
    }
}
