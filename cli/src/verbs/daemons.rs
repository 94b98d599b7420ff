use crate::args::*;
use crate::config::*;
use crate::failure::*;
pub async fn coordinator(_: Daemon<CoordinatorSettings>) -> Result<()> {
    Ok(())
}
pub async fn agent(_: Daemon<AgentSettings>) -> Result<()> {
    Ok(())
}
