-- For wrk: requests made once, for the tokens of a file in turn; the result as one line of JSON.
-- Arguments: tokens, method, bytes of the body.
local requests, position = {}, 0

function init(args)
  local body = tonumber(args[3]) > 0 and string.rep("x", tonumber(args[3])) or nil
  for token in io.lines(args[1]) do
    local headers = { ["Authorization"] = "Bearer " .. token }
    if body then
      headers["Content-Type"] = "application/octet-stream"
    end
    requests[#requests + 1] = wrk.format(args[2], nil, headers, body)
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)
  ))
end
