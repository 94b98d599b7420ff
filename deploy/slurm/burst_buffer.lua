-- Pulls the data of jobs while they are pending. Everything is decided in `millstream slurm`.
-- slurm_bb_data_in and the teardown run beside slurmctld, without its locks: only they use the network.
local MILLSTREAM = "/usr/bin/millstream"

local function run(arguments)
  local pipe = io.popen(MILLSTREAM .. " slurm " .. arguments .. " 2>&1; echo \"$?\"", "r")
  local output = pipe:read("*a") or ""
  pipe:close()
  local words, code = output:match("^(.-)%s*(%d+)%s*$")
  if code == "0" then return slurm.SUCCESS end
  return slurm.ERROR, (words or output):gsub("%c", " "):sub(-400)
end

local function number(job) return tostring(job):match("^%d+$") or "0" end

function slurm_bb_data_in(job, script)
  if script:find("'", 1, true) then return slurm.ERROR, "odd path of the job script" end
  return run("stage-in " .. number(job) .. " --script '" .. script .. "'")
end

function slurm_bb_job_teardown(job, script, hurry)
  run("stage-out " .. number(job))
  return slurm.SUCCESS
end

local function nothing() return slurm.SUCCESS end
slurm_bb_job_process, slurm_bb_setup, slurm_bb_paths = nothing, nothing, nothing
slurm_bb_pre_run, slurm_bb_post_run, slurm_bb_data_out = nothing, nothing, nothing
function slurm_bb_real_size(job) return slurm.SUCCESS, "0" end
function slurm_bb_pools() return slurm.SUCCESS, '{"pools":[{"id":"millstream","quantity":1,"granularity":1}]}' end
function slurm_bb_get_status() return slurm.SUCCESS, "`millstream status` says more" end
return slurm.SUCCESS
