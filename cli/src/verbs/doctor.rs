use crate::args::*;
use crate::failure::*;
pub async fn run(_: DoctorArgs) -> Result<()> {
    Ok(())
}
