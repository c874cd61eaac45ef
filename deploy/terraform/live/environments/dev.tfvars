# dev. Replace the ids by your own; there is no secret in here, and none may come in.

environment = "dev"
region      = "eu-central-1"
image       = "000000000000.dkr.ecr.eu-central-1.amazonaws.com/wootz-gateway@sha256:0000000000000000000000000000000000000000000000000000000000000000"

vpc_id = "vpc-0a1"
subnets = {
  eu-central-1a = "subnet-0a1a"
  eu-central-1b = "subnet-0a1b"
}
balancer_networks = ["10.1.0.0/20", "10.1.16.0/20"]
client_security_groups = {
  agents  = "sg-0a1agents"
  bastion = "sg-0a1bastion"
}
certificate_arn = "arn:aws:acm:eu-central-1:000000000000:certificate/00000000-0000-0000-0000-000000000000"

secrets = {
  database-url = "the gateway's own user of PostgreSQL, as an address"
  redis-url    = "the same for Redis"
  master-key   = "the administrator's key of the gateway"
  store-key    = "what locks the keys of what is kept for users, 32 bytes in base64"
  openai       = "the dev account at OpenAI"
  anthropic    = "the dev account at Anthropic"
}

settings = {
  DATABASE__URL                  = "aws:wootz-dev/database-url"
  LIMITS__REDIS                  = "aws:wootz-dev/redis-url"
  SERVER__MASTER_KEY             = "aws:wootz-dev/master-key"
  SECRETS__MASTER_KEY            = "aws:wootz-dev/store-key"
  PROVIDERS__OPENAI__KIND        = "openai"
  PROVIDERS__OPENAI__API_KEY     = "aws:wootz-dev/openai"
  PROVIDERS__ANTHROPIC__KIND     = "anthropic"
  PROVIDERS__ANTHROPIC__API_KEY  = "aws:wootz-dev/anthropic"
  MODELS__GPT__PROVIDER          = "openai"
  MODELS__GPT__UPSTREAM_MODEL    = "gpt-4o-2024-11-20"
  MODELS__CLAUDE__PROVIDER       = "anthropic"
  MODELS__CLAUDE__UPSTREAM_MODEL = "claude-sonnet-4-20250514"
}

replicas  = { min = 2, max = 2 }
database  = { class = "db.t4g.small", storage_gib = 20, backup_days = 1 }
cache     = { node_type = "cache.t4g.micro", user_group_id = "wootz-dev" }
protected = false
