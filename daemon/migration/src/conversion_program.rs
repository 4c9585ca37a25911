//! The program of a conversion: the plan's command, or warmd's own child that calls virt-v2v.
//!
//! Rule: the child is the running daemon's own program, even if its file was replaced: its input is of the
//! same version. It gets what the daemon's environment says about libguestfs, which the plan's commands do
//! not.

use std::{
    env,
    ffi::{OsStr, OsString},
    time::Duration,
};

use warmd_core::model::conversion::{Conversion, VIRT_V2V};

use warmd_v2v::tools::{self, GUESTFISH};

use super::program::{self, Order, ProgramResult};

/// This program, as its children find it.
const THIS: &str = "/proc/self/exe";
/// The most time that virt-v2v may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(30);
/// Settings of libguestfs and its appliance, by the beginning of their names.
const PASSED_ON: [&str; 3] = ["LIBGUESTFS_", "SUPERMIN_", "CACHE_DIRECTORY"];

/// A program that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConversionProgram {
    /// The program and its arguments, as the report has them.
    pub(super) shown: Vec<String>,
    /// The program and its arguments.
    command: Vec<String>,
    variables: Vec<(String, OsString)>,
    timeout: Duration,
    /// For virt-v2v: whether it also installs scripts for the first start.
    tool: Option<bool>,
}

impl ConversionProgram {
    /// The program of the conversion; `None` if nothing is converted.
    pub(super) fn of(conversion: &Conversion) -> Option<Self> {
        match conversion {
            Conversion::None => None,
            Conversion::Command(converter) => Some(Self {
                shown: converter.command.clone(),
                command: converter.command.clone(),
                variables: Vec::new(),
                timeout: converter.timeout,
                tool: None,
            }),
            Conversion::VirtV2v(options) => Some(Self {
                shown: vec![VIRT_V2V.to_owned(), "--root".to_owned(), options.root.clone()],
                command: vec![THIS.to_owned(), warmd_v2v::SUBCOMMAND.to_owned()],
                variables: variables(),
                timeout: options.timeout,
                tool: Some(!options.first_boot.is_empty()),
            }),
        }
    }

    /// The program that inspects a guest.
    pub(super) fn inspection(timeout: Duration) -> Self {
        let command = [THIS, warmd_v2v::SUBCOMMAND, warmd_v2v::INSPECT].map(str::to_owned).to_vec();
        Self { shown: vec![GUESTFISH.to_owned()], command, variables: variables(), timeout, tool: None }
    }

    /// Runs it with this input and more variables; `tell` gets its lines.
    pub(super) async fn run(
        &self,
        input: &[u8],
        more: &[(&str, &OsStr)],
        tell: &mut (dyn FnMut(&str) + Send),
    ) -> ProgramResult {
        let own = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_os_str()));
        let variables: Vec<_> = own.chain(more.iter().copied()).collect();
        let order = Order { command: &self.command, input, variables: &variables, deadline: self.timeout };
        program::run_told(&order, tell).await
    }

    pub(super) fn name(&self) -> &str {
        self.shown.first().map_or("", String::as_str)
    }

    /// What it lacks, and what to do; `None` if it can start.
    pub(super) async fn missing(&self) -> Option<String> {
        let Some(scripts) = self.tool else { return program::is_executable(self.name()).err() };
        // It runs a program for its version.
        let asked = tokio::task::spawn_blocking(move || tools::ready(scripts).err());
        match tokio::time::timeout(VERSION_DEADLINE, asked).await {
            Ok(Ok(missing)) => missing,
            Ok(Err(error)) => Some(format!("{VIRT_V2V} was not looked for: {error}")),
            Err(_) => Some(format!("{VIRT_V2V} did not say its version in {} s", VERSION_DEADLINE.as_secs())),
        }
    }
}

fn variables() -> Vec<(String, OsString)> {
    let all = env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    all.filter(|(name, _)| PASSED_ON.iter().any(|passed| name.starts_with(passed))).collect()
}

#[cfg(test)]
mod tests {
    use warmd_core::model::conversion::{Converter, VirtV2v};

    use super::*;

    #[tokio::test]
    async fn a_command_is_the_plans_and_virt_v2v_is_this_program() {
        assert_eq!(ConversionProgram::of(&Conversion::None), None);
        let command = vec!["/bin/true".to_owned(), "x".to_owned()];
        let converter = Converter { command: command.clone(), timeout: Duration::from_secs(7) };
        let program = ConversionProgram::of(&Conversion::Command(converter)).unwrap();
        assert_eq!((&program.shown, &program.command), (&command, &command));
        assert_eq!((program.name(), program.timeout), ("/bin/true", Duration::from_secs(7)));
        assert_eq!(program.missing().await, None);

        let options = VirtV2v { root: "first".to_owned(), ..VirtV2v::default() };
        let program = ConversionProgram::of(&Conversion::VirtV2v(options)).unwrap();
        assert_eq!(program.shown, ["virt-v2v", "--root", "first"]);
        assert_eq!(program.command, ["/proc/self/exe", "virt-v2v"]);
        let inspection = ConversionProgram::inspection(Duration::from_secs(1));
        assert_eq!(inspection.command, ["/proc/self/exe", "virt-v2v", "--inspect"]);
    }
}
