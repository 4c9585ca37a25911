//! Hold-off: what besides warmd could start the source is removed, and restored by every undo of the cutover.
//!
//! Rule: the earlier settings are in the cutover's record before they are removed, and deleted only after
//! they are restored.

use warmd_core::{
    crash,
    sources::{MigratedMark, SourceError, SourceErrorKind},
};

use crate::{context::Context, failure::WorkError};

/// Removes what could start the source again, after recording it. Also for a source that was off before.
pub(super) async fn hold_off(context: &Context) -> Result<(), WorkError> {
    let was = if let Some(was) = context.cutover().hold_off {
        was
    } else {
        let was = context.source.starters(&context.vm, context.id).await?;
        context.remember(|cutover| cutover.hold_off = Some(was.clone())).await?;
        was
    };
    let moved = MigratedMark { owner: context.id, target: context.target_endpoint().to_owned() };
    context.source.hold_off(&context.vm, &moved, &was).await?;
    crash::point("source.held-off");
    Ok(())
}

/// Restores what [`hold_off`] removed, then deletes the record. A state restored from an older copy has no
/// record: the source's own mark has it.
pub(crate) async fn let_go(context: &Context) -> Result<(), WorkError> {
    give_starters_back(context).await?;
    if context.cutover().hold_off.is_some() {
        context.remember(|cutover| cutover.hold_off = None).await?;
    }
    Ok(())
}

/// The same, while saving fails: the record still says that the source is held off, and a later call repeats
/// this.
pub(crate) async fn give_starters_back(context: &Context) -> Result<(), SourceError> {
    let was = context.cutover().hold_off.unwrap_or_default();
    match context.source.let_go(&context.vm, context.id, &was).await {
        // A VM that does not exist is not held off.
        Err(error) if error.kind == SourceErrorKind::NotFound => Ok(()),
        result => result,
    }
}
