-- Assign and release in batches, in turn. Arguments: project, tasks in a batch, then one id:secret per connection.
-- As in cycle.lua, a batch is released with the credentials of its assignee, over whichever connection is free next.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

local credentials, assigns, held, turn = {}, {}, {}, 0
released = 0

function init(args)
  local ids
  credentials, ids = read_workers(args, 3)
  for i, id in ipairs(ids) do
    assigns[i] = encode("GET", "/task/get/" .. args[1] .. "?count=" .. args[2], credentials[id])
  end
end

function request()
  local release = table.remove(held)
  if release then return release end
  turn = turn % #assigns + 1
  return assigns[turn]
end

function response(status, headers, body)
  if not check(status, body) then return end
  local releases = {}
  for id in body:gmatch('{"id":(%d+),"priority":%-?%d+,"assignee"') do
    releases[#releases + 1] = '{"task_id":' .. id .. ',"result":0,"verification":0}'
  end
  if #releases > 0 then
    local assignee = body:match('"assignee":(%d+)')
    held[#held + 1] = encode("POST", "/task/bulk_release", credentials[assignee],
      '{"releases":[' .. table.concat(releases, ",") .. "]}")
  else
    local _, count = body:gsub("true", "")
    if count < 2 or body:find("false", 1, true) then return check(0, body) end
    released = released + count - 1  -- the first one is that of {"ok":true
  end
end
