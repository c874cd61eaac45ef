# The one code path of all environments. What differs is in environments/NAME.tfvars, and where its state is in
# backends/NAME.hcl:
#
#   terraform init -backend-config=backends/dev.hcl
#   terraform plan -var-file=environments/dev.tfvars -out=dev.tfplan

terraform {
  required_version = ">= 1.11.0, < 2.0.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # Encrypted with a key of its own, versioned, locked, and read by nobody but CI's roles (../bootstrap).
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "wootz", environment = var.environment, managed_by = "terraform" }
  }
}

module "gateway" {
  source = "../gateway"

  name                   = "wootz-${var.environment}"
  image                  = var.image
  vpc_id                 = var.vpc_id
  subnets                = var.subnets
  balancer_networks      = var.balancer_networks
  client_security_groups = var.client_security_groups
  certificate_arn        = var.certificate_arn
  secrets                = var.secrets
  settings               = var.settings
  replicas               = var.replicas
  database               = var.database
  cache                  = var.cache
  protected              = var.protected
}

output "url" {
  value = module.gateway.url
}

output "secret_names" {
  value = module.gateway.secret_names
}
