//! Holding the source off: what could start it again beside warmd is taken away, and given back by whatever takes the
//! cutover back.
//!
//! Rule: what it was is in the cutover's record before it is taken away, and forgotten only after it was given back.

use warmd_cbt::mutant::mutant;
use warmd_core::{
    crash,
    sources::{MigratedMark, SourceError, SourceErrorKind},
};

use crate::{context::Context, failure::WorkError};

/// Takes away what could start the source again, which the record knows before. Also of one that was off before.
pub(super) async fn hold_off(context: &Context) -> Result<(), WorkError> {
    if mutant("hold-off-forgotten") {
        return Ok(());
    }
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

/// Gives back what [`hold_off`] took away. What it was is forgotten only after that. A state that was put back from an
/// older copy knows nothing of it: the source's own mark does.
pub(crate) async fn let_go(context: &Context) -> Result<(), WorkError> {
    give_starters_back(context).await?;
    if context.cutover().hold_off.is_some() {
        context.remember(|cutover| cutover.hold_off = None).await?;
    }
    Ok(())
}

/// The same, while nothing can be saved: the record still says that the source is held off, and a later call repeats this.
pub(crate) async fn give_starters_back(context: &Context) -> Result<(), SourceError> {
    let was = context.cutover().hold_off.unwrap_or_default();
    match context.source.let_go(&context.vm, context.id, &was).await {
        // What is not there is not held.
        Err(error) if error.kind == SourceErrorKind::NotFound => Ok(()),
        result => result,
    }
}
