-- Assign and release in turn, below the path of the URL. Arguments: project, then one id:secret per connection.
-- wrk does not tell which connection an answer came in on, so a held task is released with the credentials of
-- its assignee, which the answer names, over whichever connection is free next: a connection that has just been
-- given a task is the next free one, so each connection alternates between the two calls.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

local credentials, assigns, held, turn = {}, {}, {}, 0
released = 0

function init(args)
  local ids
  credentials, ids = read_workers(args, 2)
  for i, id in ipairs(ids) do assigns[i] = encode("GET", wrk.path .. "task/get/" .. args[1], credentials[id]) end
end

function request()
  local release = table.remove(held)
  if release then return release end
  turn = turn % #assigns + 1
  return assigns[turn]
end

function response(status, headers, body)
  if not check(status, body) then return end
  local task, assignee = body:match('"task":{"id":(%d+),.-"assignee":(%d+)')
  if task then
    held[#held + 1] = encode("POST", wrk.path .. "task/release", credentials[assignee], '{"task_id":' .. task .. ',"result":0,"verification":0}')
  elseif body:find('"updated":true', 1, true) then
    released = released + 1
  else
    check(0, body)
  end
end
