//! `events`.

use warmd_proto::v1::MigrationsEventsRequest;

use super::{
    client::{Client, asked},
    failure::Failure,
    out::Out,
    words,
};

pub(super) async fn list(client: &Client, out: &Out, id: Option<String>, limit: u32) -> Result<(), Failure> {
    let request = asked(MigrationsEventsRequest { migration: id.unwrap_or_default(), limit });
    let answer = client.migrations().events(request).await?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let rows = answer.events.into_iter().map(|event| {
        let migration = event.migration_id.as_deref().map_or("-", words::short).to_owned();
        [words::moment(event.at.as_ref()), migration, event.by, event.kind, event.text]
    });
    out.table(["AT (UTC)", "MIGRATION", "BY", "KIND", "WHAT"], rows)
}
