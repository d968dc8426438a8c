-- The token (HS256, by OpenSSL's HMAC) and the session (one script in the store) of a request.
local ffi = require "ffi"
local base64 = require "ngx.base64"
local json = require "cjson.safe"
local redis = require "nginx.redis"

ffi.cdef [[
const void *EVP_sha256(void);
unsigned char *HMAC(const void *digest, const void *key, int key_length, const unsigned char *data, size_t length,
                    unsigned char *mac, unsigned int *mac_length);
]]

local IDLE_SECONDS = 1800
local script = assert(io.open(touch_file)):read("*a")
local mac, mac_length = ffi.new("unsigned char[32]"), ffi.new("unsigned int[1]")
local sha1 -- of the script, as the store tells it
local M = {}

local function refuse(detail)
  ngx.status = 401
  ngx.header.content_type = "application/json"
  ngx.say('{"detail":"' .. detail .. '"}')
  return ngx.exit(401)
end

local function hmac(text)
  ffi.C.HMAC(ffi.C.EVP_sha256(), secret, #secret, text, #text, mac, mac_length)
  return ffi.string(mac, 32)
end

-- Without an early way out, so that the time tells nothing of where two MACs differ.
local function same(a, b)
  if #a ~= #b then
    return false
  end
  local difference = 0
  for position = 1, #a do
    difference = bit.bor(difference, bit.bxor(a:byte(position), b:byte(position)))
  end
  return difference == 0
end

local function verified(token)
  local head, payload, signature = token:match("^([%w_-]+)%.([%w_-]+)%.([%w_-]+)$")
  if not head then
    return nil
  end
  local header = json.decode(base64.decode_base64url(head) or "")
  if type(header) ~= "table" or header.alg ~= "HS256" then
    return nil
  end
  if not same(hmac(head .. "." .. payload), base64.decode_base64url(signature) or "") then
    return nil
  end
  local claims = json.decode(base64.decode_base64url(payload) or "")
  if type(claims) ~= "table" or type(claims.exp) ~= "number" or claims.exp <= ngx.time() then
    return nil
  end
  return claims
end

local function touch(key)
  local store = redis:new()
  store:set_timeout(2000)
  local connected, failure = store:connect("127.0.0.1", store_port)
  if not connected then
    return nil, failure
  end
  if not sha1 then
    sha1 = store:script("load", script)
  end
  local answer, trouble = store:evalsha(sha1, 1, key, IDLE_SECONDS)
  if answer == nil then
    return nil, trouble
  end
  store:set_keepalive(60000, 512)
  return answer
end

function M.session()
  local authorization = ngx.var.http_authorization
  local claims = authorization and authorization:sub(1, 7) == "Bearer " and verified(authorization:sub(8))
  if not claims then
    return refuse("Could not validate credentials")
  end
  local live, trouble = touch("session:" .. claims.jti)
  if live == nil then
    ngx.log(ngx.ERR, trouble)
    return ngx.exit(503)
  end
  if live ~= 1 then
    return refuse("Session revoked")
  end
  ngx.var.user_id = claims.sub
end

return M
