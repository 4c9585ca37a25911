//! The document for operators names every command.

use clap::CommandFactory as _;

use super::Args;

#[test]
fn commands_are_those_of_the_document() {
    let document = include_str!("../../../docs/operate.md").replace('\n', " ");
    let mut command = Args::command();
    // clap adds its own command `help` to each group.
    command.build();
    for group in command.get_subcommands().filter(|group| group.get_name() != "help") {
        let of_group = group.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help");
        let names = of_group.collect::<Vec<_>>().join("|");
        let wanted = format!("`{} {names}`", group.get_name()).replace(" `", "`");
        assert!(document.contains(&wanted), "daemon/docs/operate.md does not have {wanted}");
    }
}
