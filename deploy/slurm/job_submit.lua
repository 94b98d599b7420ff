-- Refuses requests for data that is not in the catalog, and has the rest pulled while the job is pending.
-- slurmctld holds its locks here: only files are looked for, which `millstream slurm catalog --watch` keeps.
local CATALOG = "/run/millstream-catalog/"
local AHEAD = true   -- false where BurstBufferType is not burst_buffer/lua
local NAMES = {"^ckpt/[%w%%_.-]+@%w+$", "^[%w_-][%w_.-]*$", "^[%w_-][%w_.-]*@[%w_-][%w_.-]*$"}
local LATER = {"^ckpt/.*@latest$", "^ckpt/%%x@"}   -- decided when the job asks
local OPTIONS = {"^spread=%d+$", "^priority=%d+$", "^timeout=%w+$"}

local function exists(name) local file = io.open(CATALOG .. name) return file and file:close() end
local function any(patterns, text) for _, p in ipairs(patterns) do if text:find(p) then return true end end end

function slurm_job_submit(job, partitions, uid)
  local text, lines = job.comment or "", {}
  for _, variable in pairs(job.spank_job_env or {}) do   -- --stage: the same words, `millstream:` may be missing
    local stage = variable:match("MILLSTREAM_STAGE=(.*)$") or ""
    text = text .. stage:gsub("%S+", function(word) return " millstream:" .. word:gsub("^millstream:", "") end)
  end
  for word in text:gmatch("%S+") do if word:lower():find("^millstream:") then
    local name, options = word:match("^millstream:([^,]*)(.*)$")
    local why = not any(NAMES, name or "") and (name or word) .. " is not NAME or NAME@VERSION"
    for option in (options or ""):gmatch(",([^,]*)") do
      why = why or not any(OPTIONS, option) and option .. " is not spread=R, priority=P or timeout=D"
    end
    if not why and exists(".current") and not any(LATER, name) and not exists((name:gsub("/", ":"))) then
      why = "there is no dataset " .. name .. "; `millstream dataset ls` lists what there is"
    end
    if why then slurm.log_user("millstream: %s", why) return slurm.ERROR end
    lines[#lines + 1] = "#BB_LUA " .. word
  end end
  if AHEAD and lines[1] and not job.burst_buffer then job.burst_buffer = table.concat(lines, "\n") end
  return slurm.SUCCESS
end
function slurm_job_modify() return slurm.SUCCESS end
return slurm.SUCCESS
