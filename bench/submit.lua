-- One task per request. Arguments: project, then one id:secret per connection.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

local credentials, ids, project, count = {}, {}, 0, 0

function init(args)
  project = args[1]
  credentials, ids = read_workers(args, 2)
end

function request()
  count = count + 1
  local body = '{"project":' .. project .. ',"recipe":"https://example.org/page/' .. count .. '","max_retries":3,"priority":1}'
  return encode("POST", "/task/submit", credentials[ids[count % #ids + 1]], body)
end

function response(status, headers, body) check(status, body) end
