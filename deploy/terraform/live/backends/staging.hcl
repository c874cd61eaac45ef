bucket     = "wootz-staging-state"
key        = "gateway.tfstate"
region     = "eu-central-1"
kms_key_id = "alias/wootz-staging-state"
