-- Pulls the data of jobs while they are pending. Everything is decided in `millstream slurm`.
-- slurm_bb_data_in and the teardown run beside slurmctld, without its locks: only they use the network.
local MILLSTREAM = "/usr/bin/millstream"

local function run(arguments)
  local pipe = io.popen(MILLSTREAM .. " slurm " .. arguments .. " 2>&1; echo \"$?\"", "r")
  local words, code = (pipe:read("*a") or ""):match("^(.-)%s*(%d+)%s*$")
  pipe:close()
  if code == "0" then return slurm.SUCCESS end
  return slurm.ERROR, ((words or "no answer"):gsub("%c", " "):sub(-400))
end

function slurm_bb_data_in(job, script)
  if script:find("'", 1, true) then return slurm.ERROR, "odd path of the job script" end
  return run(("stage-in %d --script '%s'"):format(job, script))
end
function slurm_bb_job_teardown(job) run(("stage-out %d"):format(job)) return slurm.SUCCESS end
local function nothing() return slurm.SUCCESS end
slurm_bb_job_process, slurm_bb_setup, slurm_bb_paths = nothing, nothing, nothing
slurm_bb_pre_run, slurm_bb_post_run, slurm_bb_data_out = nothing, nothing, nothing
function slurm_bb_real_size() return slurm.SUCCESS, "0" end
function slurm_bb_pools() return slurm.SUCCESS, '{"pools":[{"id":"millstream","quantity":1,"granularity":1}]}' end
function slurm_bb_get_status() return slurm.SUCCESS, "`millstream status` says more" end
return slurm.SUCCESS
