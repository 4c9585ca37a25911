//! One request of the API for each task.

use warmd_proto::v1::{
    Migration, MigrationsCancelRequest, MigrationsCutoverRequest, MigrationsRollbackRequest,
    MigrationsSyncRequest, MigrationsVerifyRequest, RequestOutcome,
};

use super::{
    super::{
        client::{Client, asked},
        failure::CliFailure,
    },
    Task,
};

/// The answer to a request.
pub(crate) struct RequestAnswer {
    pub(crate) answer: RequestOutcome,
    /// The migration's state then.
    pub(crate) migration: Migration,
    /// The id of a requested verification.
    pub(crate) verification: String,
}

/// The options of a task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// The verification's options.
    pub(crate) verify: MigrationsVerifyRequest,
    /// Whether a cutover begins outside its windows too.
    pub(crate) force: bool,
}

/// Requests `task` for the migration that `key` names.
pub(crate) async fn ask(
    client: &Client,
    key: &str,
    task: Task,
    order: Order,
) -> Result<RequestAnswer, CliFailure> {
    let mut migrations = client.migrations();
    let migration = key.to_owned();
    let mut verification = String::new();
    let (answer, migration) = match task {
        Task::Sync => {
            let answer = migrations.sync(asked(MigrationsSyncRequest { migration })).await?.into_inner();
            (answer.answer(), answer.migration)
        }
        Task::Cutover | Task::AbortCutover => {
            let abort = task == Task::AbortCutover;
            let force = order.force;
            let request = MigrationsCutoverRequest { migration, abort, force, ..Default::default() };
            let request = asked(request);
            let answer = migrations.cutover(request).await?.into_inner();
            (answer.answer(), answer.migration)
        }
        Task::Rollback => {
            let request = asked(MigrationsRollbackRequest { migration, accept_loss: true });
            let answer = migrations.rollback(request).await?.into_inner();
            (answer.answer(), answer.migration)
        }
        Task::Cancel => {
            let answer = migrations.cancel(asked(MigrationsCancelRequest { migration })).await?.into_inner();
            (answer.answer(), answer.migration)
        }
        Task::Verify => {
            let request = asked(MigrationsVerifyRequest { migration, ..order.verify });
            let answer = migrations.verify(request).await?.into_inner();
            verification.clone_from(&answer.verification);
            (answer.answer(), answer.migration)
        }
    };
    Ok(RequestAnswer { answer, migration: migration.unwrap_or_default(), verification })
}
