use crate::args::*;
use crate::failure::*;
pub async fn run(_: S3ServerArgs) -> Result<()> {
    Ok(())
}
