# prod. Replace the ids by your own; there is no secret in here, and none may come in.

environment = "prod"
region      = "eu-central-1"
image       = "000000000000.dkr.ecr.eu-central-1.amazonaws.com/wootz-gateway@sha256:0000000000000000000000000000000000000000000000000000000000000000"

vpc_id = "vpc-0c3"
subnets = {
  eu-central-1a = "subnet-0c3a"
  eu-central-1b = "subnet-0c3b"
}
balancer_networks = ["10.3.0.0/20", "10.3.16.0/20"]
client_security_groups = {
  agents  = "sg-0c3agents"
  bastion = "sg-0c3bastion"
}
certificate_arn = "arn:aws:acm:eu-central-1:000000000000:certificate/00000000-0000-0000-0000-000000000000"

secrets = {
  database-url = "the gateway's own user of PostgreSQL, as an address"
  redis-url    = "the same for Redis"
  master-key   = "the administrator's key of the gateway"
  store-key    = "what locks the keys of what is kept for users, 32 bytes in base64"
  openai       = "the prod account at OpenAI"
  anthropic    = "the prod account at Anthropic"
}

settings = {
  DATABASE__URL                  = "aws:wootz-prod/database-url"
  LIMITS__REDIS                  = "aws:wootz-prod/redis-url"
  SERVER__MASTER_KEY             = "aws:wootz-prod/master-key"
  SECRETS__MASTER_KEY            = "aws:wootz-prod/store-key"
  PROVIDERS__OPENAI__KIND        = "openai"
  PROVIDERS__OPENAI__API_KEY     = "aws:wootz-prod/openai"
  PROVIDERS__ANTHROPIC__KIND     = "anthropic"
  PROVIDERS__ANTHROPIC__API_KEY  = "aws:wootz-prod/anthropic"
  MODELS__GPT__PROVIDER          = "openai"
  MODELS__GPT__UPSTREAM_MODEL    = "gpt-4o-2024-11-20"
  MODELS__CLAUDE__PROVIDER       = "anthropic"
  MODELS__CLAUDE__UPSTREAM_MODEL = "claude-sonnet-4-20250514"
}

replicas  = { min = 2, max = 8 }
database  = { class = "db.m7g.large", storage_gib = 200, backup_days = 30 }
cache     = { node_type = "cache.m7g.large", user_group_id = "wootz-prod" }
protected = true
