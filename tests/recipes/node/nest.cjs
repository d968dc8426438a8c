// NestJS with @nestjs/jwt, after the chapter "Authentication" of its documentation, in JavaScript: decorators are
// called as functions. Nothing here knows of Gatekeeper.
require("reflect-metadata");
const { Controller, Get, HttpCode, HttpStatus, Module, Post, UnauthorizedException } = require("@nestjs/common");
const { NestFactory } = require("@nestjs/core");
const { JwtModule, JwtService } = require("@nestjs/jwt");

const secret = process.env.SIGNING_KEY;

class AuthController {
  constructor(jwtService) {
    this.jwtService = jwtService;
  }

  async signIn(request) {
    const { username, password } = request.body;
    if (username !== "alice" || password !== "wonderland-1") throw new UnauthorizedException();
    return { access_token: await this.jwtService.signAsync({ sub: 1, username }) };
  }

  async getProfile(request) {
    const [type, token] = request.headers.authorization?.split(" ") ?? [];
    if (type !== "Bearer") throw new UnauthorizedException();
    try {
      const { username } = await this.jwtService.verifyAsync(token, { secret });
      return { user: username };
    } catch {
      throw new UnauthorizedException();
    }
  }
}

const { Req, Inject } = require("@nestjs/common");
const decorate = (name, ...decorators) => {
  const descriptor = Object.getOwnPropertyDescriptor(AuthController.prototype, name);
  for (const decorator of decorators) decorator(AuthController.prototype, name, descriptor);
  Req()(AuthController.prototype, name, 0);
};
decorate("signIn", HttpCode(HttpStatus.OK), Post("login"));
decorate("getProfile", Get("profile"));
Inject(JwtService)(AuthController, undefined, 0);
Controller("auth")(AuthController);

class AppModule {}
Module({
  imports: [JwtModule.register({ global: true, secret, signOptions: { expiresIn: "1h" } })],
  controllers: [AuthController],
})(AppModule);

(async () => {
  const app = await NestFactory.create(AppModule, { logger: ["error"] });
  await app.listen(0, "127.0.0.1");
  console.log(`listening on ${await app.getUrl()}`);
})();
