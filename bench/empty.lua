-- The baseline: GET and POST of the empty route in turn, the latter with a body as long as that of a release. Its
-- answers are checked like all others.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

local get = encode("GET", "/", "")
local post = encode("POST", "/", "", '{"task_id":1234567,"result":0,"verification":0}')
local count = 0

function request()
  count = count + 1
  return count % 2 == 0 and post or get
end

function response(status, headers, body) check(status, body) end
