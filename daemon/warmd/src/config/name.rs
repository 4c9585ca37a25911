//! Names of plans and endpoints.

/// Why a name is invalid, if it is; the rule of [`warmd_core::model::plan::Plan::problems`].
pub(super) fn problem(name: &str) -> Option<String> {
    let plain = |each: char| each.is_ascii_alphanumeric() || matches!(each, '.' | '-' | '_');
    let good = !name.is_empty() && name.len() <= 63 && name.chars().all(plain);
    (!good).then(|| {
        format!("the name {name:?} cannot be used: use 1 to 63 letters, digits, dots, dashes and underscores")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmd_core::model::plan::Plan;

    #[test]
    fn it_is_the_rule_of_plans() {
        for name in ["a", "A.b-c_9", "", "a b", "é", "a/b", &"x".repeat(63), &"x".repeat(64)] {
            let plan: Plan =
                toml::from_str(&format!("name = {name:?}\nsource = \"s\"\ntarget = \"t\"\nvms = [\"v\"]"))
                    .unwrap();
            assert_eq!(problem(name).is_some(), !plan.problems().is_empty(), "{name:?}");
        }
    }
}
