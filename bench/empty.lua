-- The baseline: GET / of the empty route, its answers checked like all others.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

function response(status, headers, body) check(status, body) end
