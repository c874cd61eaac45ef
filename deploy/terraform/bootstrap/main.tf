# Once an environment, by a person with rights over the account: where its state is kept, and CI's two identities.
#
#   terraform -chdir=deploy/terraform/bootstrap init
#   terraform -chdir=deploy/terraform/bootstrap apply -var environment=dev -var repository=OWNER/NAME -var oidc_provider_arn=…
#
# Two keys, as for a launch: `plan` may read everything that a plan compares and writes nothing but a lock; `apply` may
# write, and only a job of the GitHub environment of that name can become it.

terraform {
  required_version = ">= 1.11.0, < 2.0.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

variable "environment" {
  type = string

  validation {
    condition     = contains(["dev", "staging", "prod"], var.environment)
    error_message = "One of dev, staging, prod."
  }
}

variable "repository" {
  description = "OWNER/NAME on GitHub."
  type        = string
}

variable "oidc_provider_arn" {
  description = "Of token.actions.githubusercontent.com in this account."
  type        = string
}

variable "region" {
  type    = string
  default = "eu-central-1"
}

provider "aws" {
  region = var.region
}

locals {
  name = "wootz-${var.environment}"
  # Whom GitHub vouches for: the job of an environment, which for "…-plan" is any pull request of this repository.
  subjects = {
    plan  = "repo:${var.repository}:environment:${var.environment}-plan"
    apply = "repo:${var.repository}:environment:${var.environment}"
  }
}

# --- the state: encrypted, versioned, for CI alone ------------------------------------------------------------------

resource "aws_kms_key" "state" {
  description         = "${local.name}: Terraform's state"
  enable_key_rotation = true
}

resource "aws_kms_alias" "state" {
  name          = "alias/${local.name}-state"
  target_key_id = aws_kms_key.state.key_id
}

resource "aws_s3_bucket" "state" {
  bucket = "${local.name}-state"

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "state" {
  bucket                  = aws_s3_bucket.state.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "state" {
  bucket = aws_s3_bucket.state.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "state" {
  bucket = aws_s3_bucket.state.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.state.arn
    }
  }
}

data "aws_iam_policy_document" "state_for_ci_alone" {
  statement {
    sid     = "NobodyElseReads"
    effect  = "Deny"
    actions = ["s3:GetObject*", "s3:PutObject*", "s3:DeleteObject*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    resources = ["${aws_s3_bucket.state.arn}/*"]

    condition {
      test     = "ArnNotEquals"
      variable = "aws:PrincipalArn"
      values   = [for role in aws_iam_role.ci : role.arn]
    }
  }

  statement {
    sid     = "OnlyEncryptedOnTheWay"
    effect  = "Deny"
    actions = ["s3:*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    resources = [aws_s3_bucket.state.arn, "${aws_s3_bucket.state.arn}/*"]

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "state" {
  bucket = aws_s3_bucket.state.id
  policy = data.aws_iam_policy_document.state_for_ci_alone.json
}

# --- the two identities ---------------------------------------------------------------------------------------------

data "aws_iam_policy_document" "github_may_assume" {
  for_each = local.subjects

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:sub"
      values   = [each.value]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "ci" {
  for_each = local.subjects

  name                 = "${local.name}-${each.key}"
  assume_role_policy   = data.aws_iam_policy_document.github_may_assume[each.key].json
  max_session_duration = 3600
}

resource "aws_iam_role_policy_attachment" "plan_reads" {
  role       = aws_iam_role.ci["plan"].name
  policy_arn = "arn:aws:iam::aws:policy/ReadOnlyAccess"
}

# Whoever plans has no business with a secret's value; whoever applies has none either.
data "aws_iam_policy_document" "no_values" {
  statement {
    sid       = "NoSecretValues"
    effect    = "Deny"
    actions   = ["secretsmanager:GetSecretValue", "secretsmanager:BatchGetSecretValue", "ssm:GetParameter*"]
    resources = ["*"]
  }
}

resource "aws_iam_role_policy" "no_values" {
  for_each = aws_iam_role.ci

  name   = "no-secret-values"
  role   = each.value.id
  policy = data.aws_iam_policy_document.no_values.json
}

data "aws_iam_policy_document" "state" {
  for_each = local.subjects

  statement {
    sid       = "State"
    actions   = each.key == "apply" ? ["s3:GetObject", "s3:PutObject"] : ["s3:GetObject"]
    resources = ["${aws_s3_bucket.state.arn}/gateway.tfstate"]
  }

  statement {
    sid       = "Lock"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.state.arn}/gateway.tfstate.tflock"]
  }

  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.state.arn]
  }

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.state.arn]
  }
}

resource "aws_iam_role_policy" "state" {
  for_each = aws_iam_role.ci

  name   = "state"
  role   = each.value.id
  policy = data.aws_iam_policy_document.state[each.key].json
}

# What the module in ../gateway is made of, and roles that bear this environment's name.
data "aws_iam_policy_document" "apply_writes" {
  statement {
    sid = "Services"
    actions = [
      "application-autoscaling:*", "ec2:*SecurityGroup*", "ec2:CreateTags", "ecs:*", "elasticache:*",
      "elasticloadbalancing:*", "kms:*", "logs:*", "rds:*", "secretsmanager:*",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "OwnRoles"
    actions   = ["iam:*Role*"]
    resources = ["arn:aws:iam::*:role/${local.name}-task", "arn:aws:iam::*:role/${local.name}-execution"]
  }
}

resource "aws_iam_role_policy" "apply_writes" {
  name   = "apply"
  role   = aws_iam_role.ci["apply"].id
  policy = data.aws_iam_policy_document.apply_writes.json
}

output "roles" {
  description = "For the variables PLAN_ROLE and APPLY_ROLE of the GitHub environments."
  value       = { for key, role in aws_iam_role.ci : key => role.arn }
}
