# staging. Replace the ids by your own; there is no secret in here, and none may come in.

environment = "staging"
region      = "eu-central-1"
image       = "000000000000.dkr.ecr.eu-central-1.amazonaws.com/wootz-gateway@sha256:0000000000000000000000000000000000000000000000000000000000000000"

vpc_id = "vpc-0b2"
subnets = {
  eu-central-1a = "subnet-0b2a"
  eu-central-1b = "subnet-0b2b"
}
balancer_networks = ["10.2.0.0/20", "10.2.16.0/20"]
client_security_groups = {
  agents  = "sg-0b2agents"
  bastion = "sg-0b2bastion"
}
certificate_arn = "arn:aws:acm:eu-central-1:000000000000:certificate/00000000-0000-0000-0000-000000000000"

secrets = {
  database-url = "the gateway's own user of PostgreSQL, as an address"
  redis-url    = "the same for Redis"
  master-key   = "the administrator's key of the gateway"
  store-key    = "what locks the keys of what is kept for users, 32 bytes in base64"
  openai       = "the staging account at OpenAI"
  anthropic    = "the staging account at Anthropic"
}

settings = {
  DATABASE__URL                  = "aws:wootz-staging/database-url"
  LIMITS__REDIS                  = "aws:wootz-staging/redis-url"
  SERVER__MASTER_KEY             = "aws:wootz-staging/master-key"
  SECRETS__MASTER_KEY            = "aws:wootz-staging/store-key"
  PROVIDERS__OPENAI__KIND        = "openai"
  PROVIDERS__OPENAI__API_KEY     = "aws:wootz-staging/openai"
  PROVIDERS__ANTHROPIC__KIND     = "anthropic"
  PROVIDERS__ANTHROPIC__API_KEY  = "aws:wootz-staging/anthropic"
  MODELS__GPT__PROVIDER          = "openai"
  MODELS__GPT__UPSTREAM_MODEL    = "gpt-4o-2024-11-20"
  MODELS__CLAUDE__PROVIDER       = "anthropic"
  MODELS__CLAUDE__UPSTREAM_MODEL = "claude-sonnet-4-20250514"
}

replicas  = { min = 2, max = 4 }
database  = { class = "db.t4g.medium", storage_gib = 50, backup_days = 7 }
cache     = { node_type = "cache.t4g.small", user_group_id = "wootz-staging" }
protected = true
