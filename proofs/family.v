(* What the library adds to theorems 1 to 3: all reverse steps with the same marginals, from theorem 3's to the one
   that draws no noise where none is needed; scale-matched noise; and steps that are exact to second moments. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.
From ssd Require Import matrices moments gaussian.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- (10): every gain B keeps the marginals ---- *)

Section Family.
Variables (R : realFieldType) (W : comAlgType R) (E : expectation W) (C : conditioning E).

Definition family_cov m n (B : 'M[R]_(n, m)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_n := S - B *m T *m B^T.

(* The noise eps has the covariance of (10) exactly if the step carries the marginal at t to the marginal at s. *)
Theorem same_marginal_family m n (M : 'M[R]_(m, n)) (B : 'M[R]_(n, m)) (x_t : 'cV[W]_m) eps mu_s S T :
  known C mu_s -> law C x_t (cst W M *m mu_s) T -> uncorrelated C x_t eps ->
  law C (mu_s + (cst W B *m (x_t - cst W M *m mu_s) + eps)) mu_s S <-> law C eps 0 (family_cov B S T).
Proof.
move=> known_s law_t noise; set y := x_t - _.
have known_t := known_cst_mul M known_s.
have law_y : law C y 0 T.
  have := law_shift (_ : known C (- (cst W M *m mu_s))) law_t; rewrite addNr addrC; apply.
  by rewrite /known meanN known_t.
have noise_y : uncorrelated C y eps by rewrite /uncorrelated covBl noise (cov_knownl _ known_t) subr0.
have step := forward_transition B S law_y noise_y; rewrite mulmx0 in step.
split=> [law_s|/step law_step]; last by have := law_shift known_s law_step; rewrite addr0.
apply/step; have := law_shift (_ : known C (- mu_s)) law_s; rewrite addNr addKr; apply.
by rewrite /known meanN known_s.
Qed.

(* Theorem 2 is the member whose gain is the best estimator's. *)
Theorem posterior_in_family m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  family_cov (gain M S T) S T = posterior_cov M S T.
Proof.
move=> unitT symS symT; rewrite /family_cov /posterior_cov; congr (_ - _).
rewrite -[gain M S T *m T *m _]mulmxA -{2}symT -trmx_mul [X in X^T](_ : _ = S *m M^T) ?mulmxKV //.
by rewrite trmx_mul trmxK symS mulmxA.
Qed.

(* With isotropic noise it is a covariance iff sigma_t^2 B B^T <= sigma_s^2 I ... *)
Theorem family_admissible m n (B : 'M[R]_(n, m)) (sigma_s sigma_t : R) :
  covariance (family_cov B (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> psd ((sigma_s ^+ 2)%:M - sigma_t ^+ 2 *: (B *m B^T)).
Proof.
have -> : sigma_t ^+ 2 *: (B *m B^T) = B *m (sigma_t ^+ 2)%:M *m B^T by rewrite mul_mx_scalar -scalemxAl.
split=> [[]//|psd_cov]; split=> //.
by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
Qed.

(* ... that is, iff sigma_t |B| <= sigma_s. *)
Theorem family_admissible_norm N m n (B : 'M[R]_(n, m)) (sigma_s sigma_t : R) : opnorm N B ->
  covariance (family_cov B (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> sigma_t ^+ 2 * N ^+ 2 <= sigma_s ^+ 2.
Proof. exact: isotropic_transition_norm. Qed.

End Family.

(* ---- (11) and (12): from no noise on the kept modes to theorem 3 ---- *)

Section Modes.
Variables (R : rcfType) (m n r : nat).
(* A thin singular value decomposition of M, singular values d > 0: V holds the modes that M keeps. *)
Variables (U : 'M[R]_(m, r)) (V : 'M[R]_(n, r)) (d : 'rV[R]_r).
Hypothesis orthoU : U^T *m U = 1%:M.
Hypothesis orthoV : V^T *m V = 1%:M.
Hypothesis d_gt0 : forall i, 0 < d 0 i.
Let M : 'M[R]_(m, n) := U *m diag_mx d *m V^T.
Variables (sigma_s sigma_t : R).
Hypothesis sigma_s_ge0 : 0 <= sigma_s.
Hypothesis sigma_t_gt0 : 0 < sigma_t.
Let S : 'M[R]_n := (sigma_s ^+ 2)%:M.
Let T : 'M[R]_m := (sigma_t ^+ 2)%:M.
Let rho := sigma_s ^+ 2 / sigma_t ^+ 2.

(* A gain that acts on the kept modes one by one. *)
Definition mode_gain (b : 'rV[R]_r) : 'M[R]_(n, m) := V *m diag_mx b *m U^T.
Definition deterministic_gain : 'M[R]_(n, m) := (sigma_s / sigma_t) *: (V *m U^T).
Definition eta_gain (eta : R) : 'M[R]_(n, m) :=
  mode_gain (\row_i (sigma_s / sigma_t * Num.sqrt (1 - eta ^+ 2 * (1 - rho * d 0 i ^+ 2)))).

Fact sigma_t_neq0 : sigma_t != 0. Proof. by rewrite gt_eqF. Qed.
Fact sigma_t2_neq0 : sigma_t ^+ 2 != 0. Proof. by rewrite sqrf_eq0 sigma_t_neq0. Qed.
Fact rho_ge0 : 0 <= rho. Proof. by rewrite divr_ge0 ?sqr_ge0. Qed.
Fact ratio2 : (sigma_s / sigma_t) ^+ 2 = rho. Proof. by rewrite expr_div_n. Qed.

Fact deterministicE : deterministic_gain = mode_gain (const_mx (sigma_s / sigma_t)).
Proof. by rewrite /mode_gain diag_const_mx mul_mx_scalar -scalemxAl. Qed.

Fact theorem_3_gain : gain M S T = mode_gain (rho *: d).
Proof.
rewrite isotropic_gain /mode_gain /M !trmx_mul trmxK tr_diag_mx mulmxA.
by rewrite linearZ /= -scalemxAr -scalemxAl.
Qed.

(* The modes that M destroys keep the whole variance, the kept ones what their gain leaves. *)
Lemma mode_cov b : family_cov (mode_gain b) S T =
  sigma_s ^+ 2 *: (1%:M - V *m V^T) + V *m diag_mx (\row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * b 0 i ^+ 2)) *m V^T.
Proof.
rewrite /family_cov /mode_gain !trmx_mul trmxK tr_diag_mx mul_mx_scalar -scalemxAl.
rewrite -!mulmxA (mulmxA U^T) orthoU mul1mx (mulmxA (diag_mx b)) mulmx_diag.
have -> : diag_mx (\row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * b 0 i ^+ 2))
    = (sigma_s ^+ 2)%:M - sigma_t ^+ 2 *: diag_mx (\row_i (b 0 i * b 0 i)).
  rewrite -diag_const_mx -linearZ -linearB /=; congr diag_mx.
  by apply/rowP => i; rewrite !mxE expr2.
rewrite mulmxBl mulmxBr mul_scalar_mx -scalemxAl -!scalemxAr scalerBr scalemx1 -/S.
by rewrite addrA subrK.
Qed.

(* On the kept modes only what their gains leave is seen. *)
Lemma kept_modes b : V^T *m family_cov (mode_gain b) S T *m V
  = diag_mx (\row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * b 0 i ^+ 2)).
Proof.
rewrite mode_cov; set D := diag_mx _; rewrite mulmxDr mulmxDl.
have -> : V^T *m (sigma_s ^+ 2 *: (1%:M - V *m V^T)) = 0.
  by rewrite -scalemxAr mulmxBr mulmx1 mulmxA orthoV mul1mx subrr scaler0.
by rewrite mul0mx add0r -!mulmxA orthoV mulmx1 mulmxA orthoV mul1mx.
Qed.

Lemma kept_posterior : V^T *m posterior_cov M S T *m V
  = diag_mx (\row_i (sigma_s ^+ 2 * (1 - rho * d 0 i ^+ 2))).
Proof.
have unitT : T \in unitmx by rewrite unitmxE det_scalar unitfE expf_neq0 ?sigma_t2_neq0.
rewrite -posterior_in_family //; try exact: symmetric_scalar.
rewrite theorem_3_gain kept_modes; congr diag_mx; apply/rowP => i; rewrite !mxE.
exact: kept_variance (elimN eqP sigma_t2_neq0).
Qed.

Lemma projection_psd : psd (1%:M - V *m V^T).
Proof.
have -> : 1%:M - V *m V^T = (1%:M - V *m V^T) *m (1%:M - V *m V^T)^T; last exact: psd_gram.
rewrite [(1%:M - _)^T]linearB /= tr_scalar_mx trmx_mul trmxK mulmxBl mul1mx mulmxBr mulmx1.
by rewrite mulmxA -(mulmxA V) orthoV mulmx1 subrr subr0.
Qed.

Lemma mode_covariance (b : 'rV[R]_r) : (forall i, sigma_t ^+ 2 * b 0 i ^+ 2 <= sigma_s ^+ 2) ->
  covariance (family_cov (mode_gain b) S T).
Proof.
move=> b_le; split; first by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
rewrite mode_cov; apply: psdD; first by apply: psdZ; [apply: sqr_ge0 | apply: projection_psd].
by apply/psd_congr/psd_diag => i; rewrite mxE subr_ge0.
Qed.

(* (11) is admissible whatever M is, draws noise of variance sigma_s^2 on the modes that M destroys, none on those it
   keeps, and is a multiple of a partial isometry. *)
Theorem deterministic_end :
  [/\ covariance (family_cov deterministic_gain S T),
      family_cov deterministic_gain S T = sigma_s ^+ 2 *: (1%:M - V *m V^T),
      family_cov deterministic_gain S T *m V = 0
    & deterministic_gain *m deterministic_gain^T *m deterministic_gain
      = (sigma_s / sigma_t) ^+ 2 *: deterministic_gain].
Proof.
have covE : family_cov deterministic_gain S T = sigma_s ^+ 2 *: (1%:M - V *m V^T).
  rewrite deterministicE mode_cov [X in diag_mx X](_ : _ = 0) ?raddf0 ?mulmx0 ?mul0mx ?addr0 //.
  by apply/rowP => i; rewrite !mxE expr_div_n mulrC divfK ?sigma_t2_neq0 // subrr.
split=> //.
- rewrite deterministicE; apply: mode_covariance => i.
  by rewrite mxE expr_div_n mulrC divfK ?sigma_t2_neq0.
- by rewrite covE -scalemxAl mulmxBl mul1mx -mulmxA orthoV mulmx1 subrr scaler0.
rewrite /deterministic_gain [(_ *: _)^T]linearZ /= trmx_mul trmxK -!scalemxAl -!scalemxAr -scalemxAl.
rewrite -!mulmxA (mulmxA U^T U) orthoU mul1mx (mulmxA V^T V) orthoV mul1mx.
by rewrite !scalerA expr2 -!mulrA.
Qed.

(* The kept modes are what M does not destroy, and the destroyed ones are drawn afresh. *)
Theorem destroyed_modes (w : 'cV[R]_n) : M *m w = 0 <-> V^T *m w = 0.
Proof.
split=> [Mw0|Vw0]; last by rewrite -mulmxA Vw0 mulmx0.
have dVw : diag_mx d *m (V^T *m w) = U^T *m (M *m w) by rewrite /M -!mulmxA (mulmxA U^T) orthoU mul1mx.
rewrite Mw0 mulmx0 in dVw; apply/colP => i; apply/eqP.
have /eqP := congr1 (fun v : 'cV_r => v i 0) dVw.
by rewrite mul_diag_mx !mxE mulf_eq0 (gt_eqF (d_gt0 i)).
Qed.

Theorem destroyed_modes_drawn (w : 'cV[R]_n) : M *m w = 0 -> family_cov deterministic_gain S T *m w = sigma_s ^+ 2 *: w.
Proof.
move=> /destroyed_modes Vw0; have [_ -> _ _] := deterministic_end.
by rewrite -scalemxAl mulmxBl mul1mx -mulmxA Vw0 mulmx0 subr0.
Qed.

(* (4), as theorem 1 has it, bounds every singular value. *)
Lemma mode_bound i : covariance (transition_cov M S T) -> rho * d 0 i ^+ 2 <= 1.
Proof.
pose e : 'cV[R]_r := delta_mx i 0; move/isotropic_transition=> /(_ (U *m e)).
have unit_e : sqnorm e = 1 by rewrite /sqnorm /dot trmx_delta mul_delta_mx mxE !eqxx.
have -> : M^T *m (U *m e) = V *m (d 0 i *: e).
  rewrite /M !trmx_mul trmxK tr_diag_mx -!mulmxA (mulmxA U^T) orthoU mul1mx mul_diag_mx.
  congr (_ *m _); apply/colP => j; rewrite !mxE eqxx andbT.
  by case: eqP => [->|_]; rewrite ?mulr1 ?mulr0.
rewrite !sqnorm_mulmx (mulmxA V^T) (mulmxA U^T) orthoU orthoV !mul1mx -!/(sqnorm _) sqnormZ unit_e !mulr1.
by rewrite /rho [_ / _ * _]mulrAC ler_pdivr_mulr ?mul1r // exprn_gt0.
Qed.

(* (12): eta scales the standard deviation of theorem 3's noise on the kept modes. *)
Theorem eta_family eta : 0 <= eta <= 1 -> covariance (transition_cov M S T) ->
  [/\ covariance (family_cov (eta_gain eta) S T),
      V^T *m family_cov (eta_gain eta) S T *m V = eta ^+ 2 *: (V^T *m posterior_cov M S T *m V)
    & forall w : 'cV[R]_n, M *m w = 0 -> family_cov (eta_gain eta) S T *m w = sigma_s ^+ 2 *: w].
Proof.
case/andP=> eta_ge0 eta_le1 admissible.
have rest_ge0 i : 0 <= 1 - rho * d 0 i ^+ 2 by rewrite subr_ge0 mode_bound.
have eta2_le1 : eta ^+ 2 <= 1 by rewrite expr_le1.
have root_ge0 i : 0 <= 1 - eta ^+ 2 * (1 - rho * d 0 i ^+ 2).
  rewrite subr_ge0 mulr_ile1 ?sqr_ge0 // ler_subl_addr ler_addl.
  by rewrite mulr_ge0 ?rho_ge0 ?sqr_ge0.
have variance : \row_i (sigma_s ^+ 2 - sigma_t ^+ 2 * (\row_i (sigma_s / sigma_t *
      Num.sqrt (1 - eta ^+ 2 * (1 - rho * d 0 i ^+ 2)))) 0 i ^+ 2)
    = \row_i (eta ^+ 2 * (sigma_s ^+ 2 * (1 - rho * d 0 i ^+ 2))) :> 'rV_r.
  apply/rowP => i; rewrite !mxE exprMn ratio2 sqr_sqrtr //.
  by exact: eta_variance (elimN eqP sigma_t2_neq0).
split.
- apply: mode_covariance => i; have /rowP /(_ i) := variance.
  rewrite [LHS]mxE [RHS]mxE -subr_ge0 => ->.
  by rewrite !mulr_ge0 ?sqr_ge0.
- rewrite kept_modes kept_posterior variance -linearZ /=; congr diag_mx.
  by apply/rowP => i; rewrite !mxE.
move=> w /destroyed_modes Vw0; rewrite mode_cov mulmxDl -scalemxAl mulmxBl mul1mx -!mulmxA Vw0.
by rewrite !mulmx0 subr0 addr0.
Qed.

(* eta = 1 is theorem 3 and eta = 0 is (11). *)
Theorem eta_one : eta_gain 1 = gain M S T.
Proof.
rewrite theorem_3_gain /eta_gain; congr mode_gain; apply/rowP => i; rewrite !mxE expr1n mul1r opprB addrC subrK.
rewrite -ratio2 -exprMn sqrtr_sqr ger0_norm ?mulr_ge0 ?invr_ge0 ?(ltW (d_gt0 i)) ?(ltW sigma_t_gt0) //.
by rewrite mulrA expr2.
Qed.

Theorem eta_zero : eta_gain 0 = deterministic_gain.
Proof.
rewrite deterministicE /eta_gain; congr mode_gain; apply/rowP => i.
by rewrite !mxE expr0n mul0r subr0 sqrtr1 mulr1.
Qed.

End Modes.
