-- Refuses requests for data that is not in the catalog, and has the rest pulled while the job is pending.
-- Runs while slurmctld holds its locks: it only looks for files, which `millstream slurm catalog --watch` keeps.
-- What a request means is decided by `millstream slurm`; this only finds them.
local CATALOG = "/run/millstream-catalog/"
local AHEAD = true   -- false where BurstBufferType is not burst_buffer/lua

local function exists(name)
  local file = io.open(CATALOG .. name, "r")
  if file then file:close() end
  return file ~= nil
end

local function requests(job)
  local found = {}
  for word in (job.comment or ""):gmatch("%S+") do
    local request = word:match("^millstream:(.*)$")
    if request then found[#found + 1] = request end
  end
  for _, variable in pairs(job.spank_job_env or {}) do
    for word in (variable:match("MILLSTREAM_STAGE=(.*)$") or ""):gmatch("%S+") do
      found[#found + 1] = (word:gsub("^millstream:", ""))
    end
  end
  return found
end

function slurm_job_submit(job, partitions, uid)
  local lines = {}
  for _, request in ipairs(requests(job)) do
    local name = request:match("^[^,]*")
    local checkpoint = name:match("^ckpt/[%w%%_.-]+@%w+$")
    if not checkpoint and not name:match("^[%w_-][%w_.-]*$") and not name:match("^[%w_-][%w_.-]*@[%w_-][%w_.-]*$") then
      slurm.log_user("millstream: %s is not NAME or NAME@VERSION", name)
      return slurm.ERROR
    end
    if not checkpoint and exists(".current") and not exists(name) then
      slurm.log_user("millstream: there is no dataset %s; `millstream dataset ls` lists what there is", name)
      return slurm.ERROR
    end
    lines[#lines + 1] = "#BB_LUA millstream:" .. request
  end
  if AHEAD and #lines > 0 and not job.burst_buffer then
    job.burst_buffer = table.concat(lines, "\n")
  end
  return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
return slurm.SUCCESS
