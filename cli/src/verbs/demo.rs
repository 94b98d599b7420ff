use crate::args::*;
use crate::failure::*;
pub async fn run(_: DemoArgs) -> Result<()> {
    Ok(())
}
