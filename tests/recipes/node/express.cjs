// Express with passport: passport-local signs in, passport-jwt reads bearer tokens, and the refresh token is a cookie
// named `jwt`. Beside it, below /vidly, an application that answers a login in the header `x-auth-token` and reads it
// from there. Nothing here knows of Gatekeeper.
const cookieParser = require("cookie-parser");
const express = require("express");
const jwt = require("jsonwebtoken");
const passport = require("passport");
const { ExtractJwt, Strategy: JwtStrategy } = require("passport-jwt");
const { Strategy: LocalStrategy } = require("passport-local");

const secret = process.env.SIGNING_KEY;
const refreshSecret = `${secret}-for-refresh-tokens`;
const user = { username: "alice", roles: { User: 2001 } };

passport.use(
  new LocalStrategy((username, password, done) =>
    done(null, username === "alice" && password === "wonderland-1" ? user : false),
  ),
);
passport.use(
  new JwtStrategy(
    { jwtFromRequest: ExtractJwt.fromAuthHeaderAsBearerToken(), secretOrKey: secret },
    (payload, done) => done(null, payload.UserInfo),
  ),
);

const access = () => jwt.sign({ UserInfo: user }, secret, { expiresIn: "15m" });
const guarded = passport.authenticate("jwt", { session: false });

const app = express();
app.use(express.json(), cookieParser(), passport.initialize());

app.post("/auth", passport.authenticate("local", { session: false }), (request, response) => {
  const refresh = jwt.sign({ username: request.user.username }, refreshSecret, { expiresIn: "1d" });
  response.cookie("jwt", refresh, { httpOnly: true, sameSite: "lax", maxAge: 24 * 60 * 60 * 1000 });
  response.json({ accessToken: access() });
});
app.get("/refresh", (request, response) => {
  try {
    jwt.verify(request.cookies.jwt, refreshSecret);
  } catch {
    return response.sendStatus(403);
  }
  response.json({ accessToken: access() });
});
app.get("/logout", (request, response) => {
  response.clearCookie("jwt", { httpOnly: true, sameSite: "lax" });
  response.sendStatus(204);
});
app.get("/profile", guarded, (request, response) => response.json({ user: request.user.username }));

const headerToken = (request, response, next) => {
  try {
    request.user = jwt.verify(request.header("x-auth-token"), secret);
    next();
  } catch {
    response.status(401).send("Access denied.");
  }
};
app.post("/api/auth", (request, response) => {
  if (request.body.email !== "alice@example.org" || request.body.password !== "wonderland-1") {
    return response.status(400).send("Invalid email or password.");
  }
  const token = jwt.sign({ _id: "5b21ca3eeb7f6fbccd471815", isAdmin: false }, secret, { expiresIn: "1h" });
  response.header("x-auth-token", token).json({ name: "Alice", email: request.body.email });
});
app.get("/api/me", headerToken, (request, response) => response.json({ user: request.user._id }));

const server = app.listen(0, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${server.address().port}`));
