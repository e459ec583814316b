-- What the wrk scripts share: how a request is written, how an answer is checked, how the outcome is reported.
-- wrk runs with one thread (-t1), so there is one Lua state for all connections.

local threads = {}
answered, refused, first_refusal = 0, 0, ""

function encode(method, path, headers, body)
  local head = method .. " " .. path .. " HTTP/1.1\r\nHost: localhost\r\n" .. headers
  if body then return head .. "Content-Length: " .. #body .. "\r\n\r\n" .. body end
  return head .. "\r\n"
end

-- Each argument "id:secret" becomes the headers of that worker, kept under its id and in order of appearance.
function read_workers(args, first)
  local by_id, ids = {}, {}
  for i = first, #args do
    local id, secret = args[i]:match("^(%d+):(.+)$")
    by_id[id] = "X-Worker-ID: " .. id .. "\r\nX-Secret: " .. secret .. "\r\n"
    ids[#ids + 1] = id
  end
  return by_id, ids
end

function check(status, body)
  if status == 200 and body:find('^{"ok":true') then
    answered = answered + 1
    return true
  end
  refused = refused + 1
  if refused == 1 then first_refusal = status .. " " .. body end
  return false
end

function setup(thread) threads[#threads + 1] = thread end

function done(summary, latency)
  local thread, errors = threads[1], summary.errors
  print(string.format('{"requests": %d, "seconds": %f, "answered": %d, "refused": %d, "released": %d, "lost": %d, "p99": %f}',
    summary.requests, summary.duration / 1e6, thread:get("answered"), thread:get("refused"), thread:get("released") or 0,
    errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(99) / 1e6))
  if thread:get("refused") > 0 then io.stderr:write("first answer that was not ok: ", thread:get("first_refusal"), "\n") end
end
