use crate::args::*;
use crate::failure::*;
pub async fn run(_: IndexArgs) -> Result<()> {
    Ok(())
}
